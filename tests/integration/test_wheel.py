"""An installed wheel has the commands and all that they need, without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow
PACKAGES = ("modernbert", "pipelines")
MODEL = REPOSITORY / "jobs/demo/intent-classifier"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that neither an earlier build nor this one leaves anything behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, source / package, ignore=no_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source]
    subprocess.run(build, check=True, timeout=300)
    (built,) = folder.glob("modernbert_ray-*.whl")
    shutil.rmtree(source)
    return built


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The scripts of an environment with the wheel, and the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "-q", "--no-deps", wheel], check=True, timeout=120)
    # A path in a .pth file has no .pth files of its own: the editable install is not followed.
    (site_packages,) = folder.glob("lib/*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def run(scripts: Path, name: str, *arguments: object, cwd: Path, text: str = "") -> str:
    """Run a script away from the repository and its tests, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [scripts / name, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, input=text, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages_but_the_readmes(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *PACKAGES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = {name for name in listed.stdout.split() if not name.endswith("README.md")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    # It is built where there is a C compiler.
    held = {name for name in held if not name.startswith("modernbert/_native.")}
    assert {"modernbert/py.typed", "pipelines/py.typed", "pipelines/report/report.css"} <= held
    assert held == expected


def test_the_commands_run_from_the_wheel_alone(scripts, tmp_path):
    where = "import modernbert, pipelines; print(modernbert.__file__, pipelines.__file__)"
    for file in run(scripts, "python", "-c", where, cwd=tmp_path).split():
        assert Path(file).is_relative_to(scripts.parent)

    shown = run(scripts, "modernbert-ray", "classify", "--help", cwd=tmp_path)
    assert shown.startswith("usage: modernbert-ray classify [options]\n")
    assert "--keep-columns" in shown

    pq.write_table(pa.table({"text": ["wake me at six"] * 100}), tmp_path / "in.parquet")
    named = ["--input", "in.parquet", "--output", "out", "--model", MODEL]
    plan = run(scripts, "modernbert-ray", "classify", *named, "--dry-run", cwd=tmp_path)
    assert "1 parquet file(s), 100 rows" in plan

    text = "wake me at six\n"
    line = run(scripts, "modernbert-ray", "classify", "--model", MODEL, cwd=tmp_path, text=text)
    assert '"label": "alarm"' in line


def test_the_service_is_built_from_the_wheel(scripts, tmp_path):
    """Its pages and the routes of each dialect; `serve` has the arguments of Ray Serve's command."""
    assert "CONFIG_OR_IMPORT_PATH" in run(
        scripts, "modernbert-ray", "serve", "--help", cwd=tmp_path
    )
    code = (
        "from pipelines.serve.http.app import create_app\n"
        "class Models: tasks, aliases = {'one': 'classify'}, {}\n"
        "print(*create_app(Models()).openapi()['paths'])"
    )
    paths = run(scripts, "python", "-c", code, cwd=tmp_path).split()
    assert {"/v1/embeddings", "/v2/rerank", "/embed", "/health"} <= set(paths)
