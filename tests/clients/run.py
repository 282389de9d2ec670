"""Runs real clients against the online application: python tests/clients/run.py [arguments of pytest].

They are installed from PyPI and npm into environments of their own, below .venv-clients or $CLIENTS_VENV, so that the one
of the tests stays small; two, since their dependencies do not fit together. The service is that of tests/online_service.py, with all demo models, in this process.
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


TESTS = {
    "clients": ("requirements.txt", "test_clients.py"),
    "more": ("more-requirements.txt", "test_more_clients.py"),
}
"""By environment what is installed there, and what runs there."""


def install(environment: Path, requirements: str) -> Path:
    """Install clients of PyPI once; returns the interpreter that has them."""
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
    if not (environment / "installed").is_file():
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-r", HERE / requirements], check=True
        )
        (environment / "installed").touch()
    return python


def install_npm(folder: Path) -> None:
    """Install the clients of npm once, where there is npm."""
    npm = shutil.which("npm")
    if npm and not folder.is_dir():
        subprocess.run([npm, "install", "--silent", "--prefix", folder, *NPM], check=True)


def main() -> int:
    """Start the service, run the tests, and return 0 if all pass."""
    from online_service import all_models, serving

    root = Path(os.environ.get("CLIENTS_VENV", HERE.parents[1] / ".venv-clients")).absolute()
    install_npm(root / "npm")
    codes = []
    with serving(all_models()) as url:
        variables = {
            "SERVICE": url,
            "NODE_FOLDER": str(root / "npm"),
            "OPENAI_API_KEY": "unused",
            "HF_HUB_OFFLINE": "0",
            "ANONYMIZED_TELEMETRY": "False",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "MEM0_TELEMETRY": "False",
        }
        for name, (requirements, tests) in TESTS.items():
            python = install(root / name, requirements)
            command = [
                python,
                "-m",
                "pytest",
                "-q",
                "-c",
                HERE / "pytest.ini",
                "--confcutdir",
                HERE,
            ]
            ran = subprocess.run(
                [*command, HERE / tests, *sys.argv[1:]], env={**os.environ, **variables}, cwd=HERE
            )
            codes.append(ran.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
