"""Run the analysis tests with the lowest versions that pyproject.toml allows.

    python .ci/lowest_check.py

Installed at their lower bounds are the packages below; torch, Lightning and the tools of the tests are borrowed from
the environment that runs this.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib
from environments import ROOT, borrow, environment, install

AT_LOWEST = (
    "hydra-core omegaconf cloudpickle scikit-learn filelock loky polars scipy plotly rich typer sqlalchemy".split()  # noqa: SIM905
)
QUIET = ("-W", "default::DeprecationWarning")  # of old packages that use newer ones
TESTS = ("tests/analysis", "tests/cli/test_cli.py", "tests/selection/test_database.py", "tests/policies/test_conf.py")


def lowest() -> list[str]:
    """Return the requirements for pip: each of these packages exactly at its bound.

    Raises:
        ValueError: If one of them has no lower bound in pyproject.toml.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.match(r"([\w-]+)>=([\w.]+)", line).groups() for line in project["dependencies"])  # type: ignore[union-attr]
    bounds = {name.lower(): version for name, version in bounds.items()}
    if missing := [name for name in AT_LOWEST if name not in bounds]:
        raise ValueError(f"pyproject.toml has no lower bound for {', '.join(missing)}")
    return [f"{name}=={bounds[name]}" for name in AT_LOWEST]


def main() -> int:
    """Check."""
    with tempfile.TemporaryDirectory(prefix="lrbench-lowest-") as name:
        python = environment(Path(name) / "environment")
        install(python, *lowest())
        borrow(python)
        print("with", " ".join(lowest()), flush=True)
        command = [str(python), "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *QUIET, *TESTS]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
