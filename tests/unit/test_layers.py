"""Imports point one way, as the contracts in pyproject.toml say; what a process does not need, it does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipelines.options import TASKS

REPOSITORY = Path(__file__).parents[2]


def loads(module: str, *forbidden: str) -> set[str]:
    """Those of `forbidden` that importing `module` loads in a new process."""
    code = f"import sys, {module}; print(*({set(forbidden)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_the_import_contracts_are_kept():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_predictor_imports_without_ray_and_transformers():
    code = "import sys; sys.modules['ray'] = sys.modules['transformers'] = None; import pipelines.inference.predictor"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_the_http_process_loads_no_torch():
    assert loads("pipelines.serve.http.app", "torch", "ray", "transformers") == set()
    assert loads("pipelines.serve.deployment", "torch", "transformers") == set()


@pytest.mark.slow
def test_reading_tokenising_and_committing_load_no_torch():
    """All tasks in one process: each new one would load Ray Data and Arrow again, for seconds."""
    modules = {task.implementation.partition(":")[0] for task in TASKS.values()}
    assert loads(", ".join(["pipelines.corpus.stages", *sorted(modules)]), "torch") == set()


def test_loading_a_model_loads_no_compiler(checkpoint):
    code = (
        "import sys; from modernbert import ModernBertForSequenceClassification as Classifier\n"
        f"Classifier.from_pretrained({str(checkpoint)!r}); print(*({{'torch._dynamo', 'sympy'}} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.split() == []


def test_wrong_options_are_told_without_torch_and_ray():
    assert loads("pipelines.command", "torch", "ray") == set()
    assert loads("pipelines", "torch", "ray") == set()


def test_a_wrong_input_is_told_without_torch_and_ray():
    code = (
        "import sys; from pipelines.command import run_command\n"
        "sys.argv = ['classify', '--input', '/no/such', '--model', 'x', '--output', 'y']\n"
        "code = run_command('classify'); print(code, *({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2\n"
    assert done.stderr == "error: --input '/no/such' does not exist\n"


def test_what_is_imported_from_the_packages_is_there():
    """Also by benchmarks and jobs, which no other test imports whole: moved names are found here."""
    missing = []
    for file in [
        path
        for top in ("benchmarks", "jobs", "tests")
        for path in REPOSITORY.glob(f"{top}/**/*.py")
    ]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.partition(".")[0] in ("modernbert", "pipelines"):
                names = {alias.name for alias in node.names} - defined_in(node.module)
                missing += [(file.name, node.module, name) for name in sorted(names)]
    assert missing == []


@cache
def defined_in(module: str) -> set[str]:
    """The names that a module of this repository defines or imports, and its own modules."""
    path = REPOSITORY.joinpath(*module.split("."))
    names = {each.stem for each in path.glob("*.py")} | {each.name for each in path.glob("*/")}
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
