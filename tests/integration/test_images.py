"""The Dockerfiles as far as they go without an engine: their steps in a fresh root and a fresh virtual environment.

Ray and torch are those of this environment, as they are the base image's there. All else is done as it is written: what
is copied is all that there is, and each RUN line runs. Nothing here says that the base image exists or a GPU works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

INDEX = " --index-url https://download.pytorch.org/whl/cpu"  # is the environment's own here


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its arguments in one line."""
    text = (REPOSITORY / "jobs/docker" / name).read_text()
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def arguments(name: str) -> dict[str, str]:
    """The defaults of a Dockerfile's ARGs."""
    return dict(
        value.replace('"', "").split("=", 1) for key, value in instructions(name) if key == "ARG"
    )


def build(name: str, root: Path) -> str:
    """Do the steps of a Dockerfile below `root`, and return what its RUN lines print."""
    environment = arguments(name) | {
        "HOME": str(root),
        "PATH": f"{root}/venv/bin{os.pathsep}{os.environ['PATH']}",
    }
    environment |= {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("PIP_", "SSL_", "RAY_", "HF_"))
    }
    folder, printed = root, ""
    for instruction, text in instructions(name):
        if instruction == "WORKDIR":
            folder = root / text.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            *sources, target = [word for word in text.split() if not word.startswith("--")]
            for source in sources:
                copy(REPOSITORY / source, folder / target)
        elif instruction == "RUN":
            command = text.replace(INDEX, "").replace("/app", f"{root}/app")
            done = subprocess.run(
                ["sh", "-ec", command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            printed += done.stdout
        else:
            assert instruction in ("ARG", "FROM", "USER"), instruction
    return printed


def copy(source: Path, target: Path) -> None:
    """COPY: a file into a folder, the content of a folder into another."""
    if source.is_dir():
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    else:
        shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="an image is built as root")
def test_the_steps_of_an_image_install_the_project(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    base = Path(pytest.__file__).parents[1]
    (packages / "base.pth").write_text(f"{base}\n")
    printed = build("Dockerfile.cpu", tmp_path)
    assert "1,000" in printed  # rows of the demo's dry run
    where = "import pipelines, modernbert; print(pipelines.__file__, modernbert.__file__)"
    found = subprocess.run(
        [str(python), "-c", where], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [
        f"{packages}/{package}/__init__.py" for package in ("pipelines", "modernbert")
    ]
    assert (packages / "pipelines/report/report.html.j2").is_file()


def test_the_image_for_gpus_differs_by_torch_and_flash_attn_alone():
    cpu, cuda = (
        [step for step in instructions(f"Dockerfile.{name}") if step[0] != "ARG"]
        for name in ("cpu", "cuda")
    )
    assert [step for step in cuda if "FLASH_ATTN" not in step[1]] == [
        (key, text.replace(INDEX, "")) for key, text in cpu
    ]


def test_flash_attn_is_built_against_the_installed_torch(tmp_path):
    """The line that compiles it, with a pip that writes down what it is called with."""
    (tmp_path / "pip").write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "    names = 'MAX_JOBS', 'FLASH_ATTN_CUDA_ARCHS'\n"
        "    print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]), file=calls)\n"
    )
    (tmp_path / "pip").chmod(0o755)
    (line,) = [
        text
        for key, text in instructions("Dockerfile.cuda")
        if key == "RUN" and "FLASH_ATTN" in text
    ]
    environment = arguments("Dockerfile.cuda") | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    }
    subprocess.run(["sh", "-ec", line], env=environment, cwd=tmp_path, check=True)
    assert not (tmp_path / "calls").exists()  # torch has kernels of its own
    environment["FLASH_ATTN"] = "flash-attn>=2.7"
    subprocess.run(["sh", "-ec", line], env=environment, cwd=tmp_path, check=True)
    call, variables = json.loads((tmp_path / "calls").read_text().splitlines()[-1])
    (wanted,) = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["gpu"]
    assert call == [
        "install",
        "--no-cache-dir",
        "-c",
        "constraints.txt",
        "--no-build-isolation",
        wanted,
    ]
    assert variables == {"MAX_JOBS": "8", "FLASH_ATTN_CUDA_ARCHS": "80;90"}
