"""Runs real clients against the online application: python tests/clients/run.py [arguments of pytest].

They are installed from PyPI and npm into an environment of their own, .venv-clients or $CLIENTS_VENV, so that the one
of the tests stays small. The service is that of tests/online_service.py, with all demo models, in this process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
NPM = (
    "openai",
    "cohere-ai",
    "@huggingface/inference",
    "ai",
    "@ai-sdk/openai-compatible",
    "@langchain/openai",
    "@langchain/core",
)
sys.path += [str(HERE.parent), str(HERE.parents[1])]


def install(environment: Path) -> Path:
    """Install the clients once; returns the interpreter that has them."""
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
    if not (environment / "installed").is_file():
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True
        )
        if npm := shutil.which("npm"):
            subprocess.run(
                [npm, "install", "--silent", "--prefix", environment / "npm", *NPM], check=True
            )
        (environment / "installed").touch()
    return python


def main() -> int:
    """Start the service, run the tests, and return their exit code."""
    from online_service import all_models, serving

    environment = Path(os.environ.get("CLIENTS_VENV", HERE.parents[1] / ".venv-clients")).absolute()
    python = install(environment)
    with serving(all_models()) as url:
        variables = {
            "SERVICE": url,
            "NODE_FOLDER": str(environment / "npm"),
            "OPENAI_API_KEY": "unused",
        }
        offline = {
            "HF_HUB_OFFLINE": "0",
            "ANONYMIZED_TELEMETRY": "False",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
        }
        command = [
            python,
            "-m",
            "pytest",
            "-q",
            "-c",
            HERE / "pytest.ini",
            "--confcutdir",
            HERE,
            HERE,
            *sys.argv[1:],
        ]
        return subprocess.run(
            command, env={**os.environ, **variables, **offline}, cwd=HERE
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
