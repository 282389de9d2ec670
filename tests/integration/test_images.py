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
from typing import Any

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


def stages(name: str) -> dict[str, list[tuple[str, str]]]:
    """The stages of a Dockerfile; the last one, the image, has no name."""
    found: dict[str, list[tuple[str, str]]] = {}
    steps: list[tuple[str, str]] = []
    for key, text in instructions(name):
        if key == "FROM":
            base, _, stage = text.partition(" AS ")
            steps = found.setdefault(stage, [(key, base)])
        else:
            steps.append((key, text))
    return found


def test_the_image_for_gpus_has_cuda_once():
    """The libraries that torch brings: the base with a toolkit builds wheels, and what is taken from it is wheels."""
    given, built = arguments("Dockerfile.cuda"), stages("Dockerfile.cuda")
    assert list(built) == ["wheels", ""]
    assert (built["wheels"][0][1], built[""][0][1]) == ("${BUILD_BASE}", "${BASE}")
    assert given["BASE"] == arguments("Dockerfile.cpu")["BASE"]
    base, _, cuda = given["BUILD_BASE"].rpartition("-cu")
    assert given["BASE"] == f"{base}-cpu"
    assert f"cuda-toolkit=={cuda[:2]}.{cuda[2]}." in LOCK.read_text()
    taken = [text for _, text in built[""] if "from=" in text]
    assert len(taken) == 1
    assert "--mount=type=bind,from=wheels,source=/wheels,target=/wheels pip install" in taken[0]


def test_the_image_for_gpus_has_what_that_for_cpus_has():
    cpu, cuda = instructions("Dockerfile.cpu"), stages("Dockerfile.cuda")[""]
    for key in ("USER", "WORKDIR"):
        assert [text for name, text in cuda if name == key] == [
            text for name, text in cpu if name == key
        ]
    assert cuda[-2:] == cpu[-2:]  # the jobs, and a try of one


LOCK = REPOSITORY / "jobs/docker/requirements-cuda.txt"


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK.read_text(), re.MULTILINE))


def test_the_lock_has_all_packages_of_the_image_in_the_tested_versions():
    """Those of constraints.txt, with which torch of the index, the one with CUDA, can be installed, too."""
    found = locked()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["s3"]
    assert {re.match(r"[\w-]+", each)[0].replace("_", "-") for each in wanted} <= found.keys()
    text = (REPOSITORY / "constraints.txt").read_text()
    tested = {
        name.lower().replace("_", "-"): version
        for name, version in re.findall(r"^([\w-]+)==(.*)$", text, re.MULTILINE)
    }
    both = found.keys() & tested.keys()
    assert {"torch", "triton", "ray"} <= both
    assert {name: found[name] for name in both} == {name: tested[name] for name in both}
    entries = re.split(r"\n(?=\w)", LOCK.read_text())
    assert all("--hash=sha256:" in entry for entry in entries[1:])


def test_the_builder_is_sent_what_is_copied_and_no_more():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = {line.strip("!/") for line in ignored if line.startswith("!")}
    copied = {
        source.rstrip("/").split("/")[0]
        for name in ("Dockerfile.cpu", "Dockerfile.cuda")
        for key, text in instructions(name)
        if key == "COPY"
        for source in [word for word in text.split() if not word.startswith("--")][:-1]
    }
    assert "*" in ignored
    assert sent == copied
    assert all((REPOSITORY / name).exists() for name in sent)


@pytest.mark.parametrize(
    ("version", "package"),
    [
        (None, None),
        ("2", "flash-attn>=2.7"),
        ("3", "git+https://github.com/Dao-AILab/flash-attention@v2.8.3#subdirectory=hopper"),
    ],
)
def test_flash_attention_is_built_where_it_is_asked_for(version, package, tmp_path):
    """The step that compiles it, with a pip that writes down what it is called with: against the locked torch."""
    done, calls = attention_step(tmp_path, version)
    assert done.returncode == 0, done.stderr
    if package is None:
        assert calls == []
        return
    first, *_, (call, variables) = calls
    assert first[0][-4:] == ["--no-index", "--find-links", "/wheels", "torch"]
    assert call[:3] == ["wheel", "--no-cache-dir", "--no-deps"]
    assert call[-4:] == ["--no-build-isolation", "--wheel-dir", "/wheels", package]
    assert variables == {"MAX_JOBS": "8", "FLASH_ATTN_CUDA_ARCHS": "80;90"}


def test_another_version_of_flash_attention_ends_the_build(tmp_path):
    done, calls = attention_step(tmp_path, "4")
    assert (done.returncode, done.stderr, calls) == (2, "FLASH_ATTN is 0, 2 or 3, not 4\n", [])


def test_the_package_that_is_compiled_is_that_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert [arguments("Dockerfile.cuda")["FLASH_ATTN_2"]] == project["optional-dependencies"]["gpu"]


def attention_step(
    folder: Path, version: str | None
) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    """Run the step of FLASH_ATTN, and return the calls of pip with the variables that they see."""
    (folder / "pip").write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(folder / 'calls')!r}, 'a') as calls:\n"
        "    names = 'MAX_JOBS', 'FLASH_ATTN_CUDA_ARCHS'\n"
        "    print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]), file=calls)\n"
    )
    (folder / "pip").chmod(0o755)
    (folder / "calls").touch()
    (line,) = [
        text
        for key, text in instructions("Dockerfile.cuda")
        if key == "RUN" and "FLASH_ATTN" in text
    ]
    environment = arguments("Dockerfile.cuda") | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"
    }
    if version is not None:
        environment["FLASH_ATTN"] = version
    done = subprocess.run(
        ["sh", "-ec", line], env=environment, cwd=folder, capture_output=True, text=True
    )
    return done, [json.loads(each) for each in (folder / "calls").read_text().splitlines()]
