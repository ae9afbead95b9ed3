"""Build the wheel, install it outside of the checkout, and use it there as a stranger would.

    python .ci/wheel_check.py

Heavy packages are borrowed from the environment that runs this; of the checkout nothing is seen. A line for each
command, exit code 1 if one fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environments import ROOT, borrow, checkout, environment, install

UNDECIDED = 3  # the exit code of `lrbench verify` after so few seeds
SHORT = "max_steps=60 check_every=20 target=0.8 trainer=cpu"
COMMANDS = f"""
lrbench --version
lrbench run --help
lrbench run {SHORT} lr_policy=tri hydra.run.dir=one
lrbench run --config-dir mine {SHORT} model=own hydra.run.dir=own
lrbench run -m {SHORT} lr_policy=fix,tri seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir=sweep
lrbench preview lr_policy=tri,cosine max_steps=200
lrbench preview lr_policy=tri -o rates.html
lrbench lint lr_policy=tri,cosine,composite_tri
lrbench rank sweep
lrbench report sweep -o report.html
lrbench db add sweep --db runs.db
lrbench db list --db runs.db
lrbench verify sweep --policy tri --run 3
python project/src/train.py -m lr_policy=tri,cosine hydra/launcher=lrbench_joblib paths.log_dir=logs
lrbench rank logs
"""
FROM_WHERE = """
import importlib.metadata, importlib.resources, sys
import hydra_plugins.lrbench_launchers, lrbench_pl
homes = [lrbench_pl.__file__, hydra_plugins.lrbench_launchers.__file__]
homes += [str(importlib.resources.files("lrbench_pl.conf"))]
assert all(home.startswith(sys.prefix) for home in homes), homes
assert importlib.metadata.version("lrbench_pl") == lrbench_pl.__version__
assert not [entry for entry in sys.path if entry.startswith(sys.argv[1] + "/") and "site-packages" not in entry]
"""


def main() -> int:
    """Check."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lrbench-wheel-") as name:
        place = Path(name)
        source = checkout(place / "source")
        wheels = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(place), str(source)]
        subprocess.run(wheels, check=True)
        (wheel,) = place.glob("*.whl")
        shutil.rmtree(source)
        python = environment(place / "environment")
        install(python, "--no-deps", str(wheel))
        borrow(python)
        work = place / "work"
        shutil.copytree(ROOT / "tests" / "foreign_project", work / "project")
        (work / "mine" / "model").mkdir(parents=True)
        (work / "mine" / "model" / "own.yaml").write_text(
            "_target_: own_net.Net\nnum_classes: ${dataset.num_classes}\n", encoding="utf-8"
        )
        (work / "own_net.py").write_text(
            "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, num_classes):\n"
            "        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))\n",
            encoding="utf-8",
        )
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LRBENCH_DB")}
        variables |= {"OMP_NUM_THREADS": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run([python, "-c", FROM_WHERE, str(ROOT)], cwd=work, env=variables, check=True)
        failed = 0
        for line in COMMANDS.strip().splitlines():
            begin = time.perf_counter()
            done = subprocess.run(
                line.split(), cwd=work, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            good = done.returncode == (UNDECIDED if line.startswith("lrbench verify") else 0)
            print(f"{'ok    ' if good else 'FAILED'} {time.perf_counter() - begin:5.1f} s  {line}", flush=True)
            if not good:
                failed += 1
                print(done.stdout, flush=True)
        if len(list((work / "sweep" / "verify").glob("*/result.json"))) != 1:
            failed += 1
            print("FAILED: lrbench verify --run was to train one seed")
    print(f"{wheel.name}: {failed} failed, {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
