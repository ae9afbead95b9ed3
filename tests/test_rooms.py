"""Imports between the rooms of the package point one way, as CONTRIBUTING.md says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lrbench_pl

ROOT = Path(lrbench_pl.__file__).parent
# what needs the standard library alone
BOTTOM = {"policies", "verdict", "words", "files", "reading", "stopwatch", "overrides"}
# room -> the rooms that it may import
ALLOWED = {
    "policies": set(),
    "verdict": {"words"},
    "words": set(),
    "files": {"reading"},
    "reading": set(),
    "overrides": set(),
    "stopwatch": set(),
    "rates": {"policies"},
    "saving": BOTTOM,
    "scheduler": BOTTOM | {"rates"},
    "huggingface": BOTTOM | {"saving", "scheduler"},
    "notebook": BOTTOM | {"saving", "analysis"},
    "composing": BOTTOM,
    "callbacks": BOTTOM | {"composing", "rates", "saving"},
    "workloads": BOTTOM,
    "runs": BOTTOM | {"composing", "callbacks", "workloads", "saving"},
    "sweeps": BOTTOM | {"callbacks", "workloads", "runs"},
    "selection": BOTTOM | {"composing", "callbacks", "runs"},
    "analysis": BOTTOM | {"runs.result", "runs.spec"},
    "cli": BOTTOM | {"callbacks", "runs", "sweeps", "selection", "analysis"},
    "__main__": {"cli"},
}


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in ROOT.rglob("*.py")}


def imported(module):
    """The modules of the package that a module imports anywhere, also inside functions and for types alone."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in MODULES and name not in ("lrbench_pl", module)}


def room(module):
    return module.split(".")[1]


def arrows():
    return {
        (source, target)
        for source in MODULES
        if source != "lrbench_pl"
        for target in imported(source)
        if room(source) != room(target)
    }


def test_every_room_is_known():
    assert {room(module) for module in MODULES if module != "lrbench_pl"} == ALLOWED.keys()


def test_imports_point_one_way():
    wrong = []
    for source, target in sorted(arrows()):
        allowed = ALLOWED[room(source)]
        if room(target) not in allowed and not any(target == f"lrbench_pl.{name}" for name in allowed):
            wrong.append(f"{source} imports {target}")
    assert not wrong


def test_no_circle_of_modules():
    arrows = {module: imported(module) - {"lrbench_pl"} for module in MODULES}
    done: set[str] = set()
    path: list[str] = []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for target in sorted(arrows[module]):
            if target != module and not module.startswith(f"{target}."):  # its own package
                visit(target)
        path.pop()
        done.add(module)

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.parametrize(
    ("imports", "without"),
    [
        ("lrbench_pl", ("torch", "pytorch_lightning", "polars", "plotly", "hydra", "sqlalchemy")),
        ("lrbench_pl.policies", ("torch", "numpy", "omegaconf", "hydra")),
        ("lrbench_pl.verdict", ("torch", "numpy", "omegaconf", "hydra")),
        ("lrbench_pl.saving", ("torch", "numpy", "omegaconf", "hydra", "polars")),
        ("lrbench_pl.scheduler", ("pytorch_lightning", "transformers", "omegaconf", "hydra", "polars")),
        ("lrbench_pl.notebook", ("torch", "pytorch_lightning", "transformers", "hydra", "polars")),
        ("lrbench_pl.composing.plan", ("torch", "pytorch_lightning", "polars")),
        ("lrbench_pl.analysis.ranking", ("torch", "pytorch_lightning")),
        ("lrbench_pl.sweeps.launch", ("torch", "pytorch_lightning", "polars")),
        ("lrbench_pl.sweeps.fused.placing", ("torch", "pytorch_lightning", "polars")),
    ],
)
def test_a_room_does_without(imports, without):
    program = f"import sys, {imports}; print([name for name in {without!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_training_does_without():
    """Analysis, databases, and what torchmetrics imports for metrics of images, sound and text."""
    without = ("polars", "plotly", "sqlalchemy", "selenium", "torchvision", "transformers", "scipy")
    program = f"""
import sys
from lrbench_pl.runs.imports import import_run
import_run()
assert {{"lrbench_pl.runs.run", "lrbench_pl.callbacks.composer"}} <= sys.modules.keys()
print([name for name in {without!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
