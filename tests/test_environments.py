"""Machines that differ from the developer's: login nodes and SLURM jobs, terminals, locales, homes, folders."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pytorch_lightning.plugins.environments import SLURMEnvironment

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.policies import Constant
from lrbench_pl.runs.loggers import quiet_lightning
from tests import forks
from tests.faults.sweeps import numbers
from tests.helpers import TinyModule, tiny_trainer

ROOT = Path(__file__).resolve().parent.parent
SLURM_JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "training",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}


def srun_in(folder):
    """A folder of programs with one named ``srun``, as on a login node."""
    folder.mkdir()
    (folder / "srun").write_text("#!/bin/sh\nexec false\n")
    (folder / "srun").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def login_node(tmp_path, monkeypatch):
    """SLURM is installed, and no job runs."""
    monkeypatch.setenv("PATH", srun_in(tmp_path / "bin"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_a_trainer_on_a_login_node_fails_no_test(login_node):
    """Here warnings are errors, and Lightning's remark about ``srun`` is a warning."""
    callback = LRPolicyCallback(Constant(0.1))
    tiny_trainer(callback).fit(TinyModule())
    assert callback.verdict.steps_run == 10


def test_on_a_login_node_nothing_is_said_of_srun(login_node):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_lightning():
            SLURMEnvironment()


def test_in_a_job_without_srun_lightning_s_remark_stays(login_node, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_lightning(), pytest.raises(UserWarning, match="`srun` command is available on your system"):
            SLURMEnvironment()


def run(folder, root=ROOT, environment=(), without=(), fresh=False):
    """Train 20 steps as a user does, in a fresh Python if that matters; the output, and the numbers of the row."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(root / "run.py"), "max_steps=20", "check_every=10", "trainer=cpu"]
    words += ["target=null", "hydra.run.dir=out/0"]
    known = {name: value for name, value in os.environ.items() if name not in without}
    variables = {**known, "OMP_NUM_THREADS": "1", **dict(environment)}
    if fresh:
        done = subprocess.run(
            words, cwd=folder, env=variables, capture_output=True, encoding="utf-8", errors="replace", timeout=300
        )
    else:
        done = forks.run(words, folder, variables, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    ((_, row),) = numbers(folder / "out")
    return text, {name: value for name, value in row.items() if name != "git_sha"}  # a copy has none


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    slurm = [name for name in os.environ if name.startswith("SLURM_")]
    return run(tmp_path_factory.mktemp("plain"), without=slurm)[1]


@pytest.mark.slow
class TestARunIsTheSame:
    @pytest.mark.parametrize(
        "environment",
        [
            pytest.param({"TZ": "Pacific/Chatham"}, id="time-zone"),
            pytest.param({"TERM": "dumb"}, id="dumb-terminal"),
            pytest.param(SLURM_JOB, id="slurm-job"),
        ],
    )
    def test_in_another_environment(self, plain, tmp_path, environment):
        assert run(tmp_path, environment=environment)[1] == plain

    def test_in_the_locale_c(self, plain, tmp_path):
        locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        assert run(tmp_path, environment=locale, fresh=True)[1] == plain

    def test_without_a_home(self, plain, tmp_path):
        homes = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
        assert run(tmp_path, without=homes, fresh=True)[1] == plain

    def test_on_a_login_node(self, plain, tmp_path, login_node):
        text, found = run(tmp_path / "run")
        assert found == plain
        assert "srun" not in text

    def test_in_a_clone_in_a_folder_with_a_space_and_an_accent(self, plain, tmp_path):
        clone = tmp_path / "mes études" / "lr bench"
        for name in ("conf", "hydra_plugins", "lrbench_pl"):
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "run.py", clone)
        code = clone / "lrbench_pl" / "runs" / "result.py"
        code.write_text(code.read_text() + "\nprint('of the clone')\n")
        text, found = run(clone, clone, fresh=True)
        assert "of the clone" in text
        assert found == plain
