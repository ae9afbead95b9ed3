"""Places where jobs run, and sweeps in folders that have runs already."""

import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from lrbench_pl.runs.writable import check_writable
from lrbench_pl.sweeps.local import slots_for, visible_gpus
from tests.faults.sweeps import ENVIRONMENT, needs, numbers, rows, sweep

SHORT = ("max_steps=20", "check_every=10", "target=null")


def job(accelerator="auto", threads=1, devices=1):
    trainer = {"accelerator": accelerator, "devices": devices}
    return SimpleNamespace(config=OmegaConf.create({"threads": threads, "trainer": trainer}))


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr("loky.cpu_count", lambda: 4)


@pytest.mark.parametrize(
    ("gpus", "accelerator", "threads", "n_jobs", "jobs_per_gpu", "seen"),
    [
        pytest.param("", "auto", 1, None, 1, [None] * 4, id="one-per-core"),
        pytest.param("", "auto", 3, None, 1, [None], id="three-threads-each"),
        pytest.param("", "auto", 1, 2, 1, [None] * 2, id="as-many-as-said"),
        pytest.param("0,1", "auto", 1, None, 1, ["0", "1"], id="one-per-gpu"),
        pytest.param("0,1", "auto", 1, -1, 2, ["0", "1", "0", "1"], id="two-per-gpu"),
        pytest.param("0,1", "cpu", 1, None, 1, [None] * 4, id="gpus-not-asked-for"),
    ],
)
def test_slots(monkeypatch, four_cores, gpus, accelerator, threads, n_jobs, jobs_per_gpu, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    slots = slots_for(job(accelerator, threads), n_jobs, jobs_per_gpu)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == seen
    assert {slot["OMP_NUM_THREADS"] for slot in slots} == {str(threads)}


@pytest.mark.parametrize(
    ("gpus", "threads", "seen"),
    [
        pytest.param("", 1, [None] * 2, id="two-cores-each"),
        pytest.param("", 2, [None], id="two-threads-on-each"),
        pytest.param("0,1,2,3,4", 1, ["0,1", "2,3"], id="two-gpus-each"),
    ],
)
def test_slots_of_trainings_on_two_devices(monkeypatch, four_cores, gpus, threads, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    slots = slots_for(job(threads=threads, devices=2), None, 1)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == seen


def test_too_few_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValueError, match=r"trainer\.devices=2 needs as many GPUs, found 1"):
        slots_for(job(devices=2), None, 1)


@pytest.mark.parametrize(
    ("n_jobs", "jobs_per_gpu", "message"),
    [
        (0, 1, "hydra.launcher.n_jobs must be at least 1, or -1 or null for all, got 0"),
        (-2, 1, "hydra.launcher.n_jobs must be at least 1, or -1 or null for all, got -2"),
        (1, 0, "hydra.launcher.jobs_per_gpu must be at least 1, got 0"),
    ],
)
def test_slots_are_checked(n_jobs, jobs_per_gpu, message):
    with pytest.raises(ValueError, match=message):
        slots_for(job(), n_jobs, jobs_per_gpu)


@pytest.mark.slow
def test_invalid_arguments_of_a_launcher_give_one_line(tmp_path):
    done = sweep(tmp_path / "sweep", "joblib", *SHORT, "hydra.launcher.n_jobs=0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra.launcher.n_jobs must be at least 1, or -1 or null for all, got 0\n")
    assert "Traceback" not in done.stderr


IDLE = """
import multiprocessing
from types import SimpleNamespace
from omegaconf import OmegaConf
from lrbench_pl.sweeps.local import in_workers

def lock():
    multiprocessing.kept = multiprocessing.RLock()

job = SimpleNamespace(config=OmegaConf.create({"threads": 1, "trainer": {"accelerator": "cpu"}}))
print([outcome for _, outcome in in_workers([(job, lock)] * 4, n_jobs=2)])
"""


def test_idle_workers_exit_silently_and_release_their_semaphores():
    """A killed worker would leak its semaphores, of which Python warns at exit."""
    command = [sys.executable, "-c", IDLE]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[None, None, None, None]\n", "")


INTERRUPTED = """
import contextlib, os, signal, time
from collections import deque
from functools import partial
from pathlib import Path
from lrbench_pl.sweeps.local import in_slots

def start(name):
    Path(name).touch()
    time.sleep(60)

def workers():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            ours = (path.parent / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
            if ours and "popen_loky" in path.read_text():
                yield int(path.parent.name)

waiting, ends, struck = deque([("starting", os.getpid)]), {}, 0
for done in in_slots([{}], waiting, every_s=0.002):
    if done is None and not struck:
        for worker in workers():  # its interpreter has just begun to start
            os.kill(worker, signal.SIGINT)
            struck += 1
    elif done is None and Path("running").exists():
        os.kill(worker, signal.SIGINT)
        Path("running").unlink()
    elif done is not None:
        key, end = done
        ends[key] = end
        if key == "starting":
            waiting.append(("first", os.getpid))
        elif key == "first":
            os.kill(end, signal.SIGINT)  # it waits for a job
            time.sleep(0.2)
            waiting.append(("idle", os.getpid))
        elif key == "idle":
            waiting.append(("second", os.getpid))
        elif key == "second":
            waiting.append(("running", partial(start, "running")))
        elif key == "running":
            waiting.append(("last", os.getpid))
assert ends.pop("first") == ends.pop("second") == ends.pop("last") == worker
print(struck, ends)
"""


def test_ctrl_c_interrupts_a_job_and_nothing_else_of_a_worker(tmp_path):
    """Met while a worker starts or waits, it would print a traceback; it interrupts the next job instead."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("1 {'starting': None, 'idle': None, 'running': None}\n", "")


@pytest.mark.parametrize(("launcher", "extra"), [("ray", "ray"), ("submitit_local", "submitit")])
def test_a_missing_package_is_named(tmp_path, launcher, extra):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / f"{extra}.py").write_text(f"raise ModuleNotFoundError('no {extra}')")
    path = {"PYTHONPATH": f"{hidden}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    done = sweep(tmp_path / "sweep", launcher, *SHORT, environment=path)
    assert done.returncode == 1
    assert f"pip install 'lrbench_pl[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "given", "address"),
    [(None, None, "local"), ("auto", None, None), (None, "auto", "auto"), ("auto", "10.0.0.1:6379", "10.0.0.1:6379")],
)
def test_a_sweep_starts_its_own_ray_unless_told_where_one_runs(monkeypatch, variable, given, address):
    needs("ray")
    import ray

    from lrbench_pl.sweeps.on_ray import _start_ray

    started = {}
    monkeypatch.setattr(ray, "init", lambda **given: started.update(given))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    _start_ray({"address": given})
    assert started.get("address") == address


def test_gpus_are_listed_without_torch(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


@pytest.mark.slow
def test_a_larger_sweep_keeps_finished_jobs_and_a_changed_one_is_refused(tmp_path):
    folder = tmp_path / "sweep"
    assert sweep(folder, "basic", *SHORT, "lr_policy=fix,tri", "seed=0").returncode == 0
    first = {row["run_id"]: row for row in rows(folder)}
    grown = sweep(folder, "basic", *SHORT, "lr_policy=fix,tri", "seed=0,1")
    assert grown.returncode == 0, grown.stderr
    assert "4 jobs in " in grown.stdout
    assert "2 finished before" in grown.stdout
    found = {row["run_id"]: row for row in rows(folder)}
    assert len(numbers(folder)) == len(found) == 4
    assert {name: found[name] for name in first} == first  # times included: they were not run again
    changed = sweep(folder, "basic", *SHORT, "lr_policy=fix,tri", "seed=0", "lr=0.3")
    assert changed.returncode == 1
    assert f"{folder}/0 holds a run of another configuration: " in changed.stderr
    assert "lr: 0.05 -> 0.3" in changed.stderr
    assert "Traceback" not in changed.stderr
    assert {row["run_id"]: row for row in rows(folder)} == found


def test_a_folder_that_cannot_be_created_ends_the_program(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        check_writable(tmp_path / "file" / "sweep")
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"cannot write into {tmp_path}/file/sweep: Not a directory\n"


SBATCH = """#!{python}
import os, re, shutil, subprocess, sys
shutil.copy(sys.argv[-1], {script!r})
size = int(re.search("--array=0-([0-9]+)", open({script!r}).read()).group(1)) + 1
for task in range(size):
    slurm = dict(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_ID=str(8 + task))
    slurm.update(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_JOB_NUM_NODES="1", SLURM_NTASKS="1")
    output = open({script!r} + str(task), "w")
    later = "sleep 1; exec bash " + {script!r}
    subprocess.Popen(["sh", "-c", later], env={{**os.environ, **slurm}}, stdout=output, stderr=output)
print("Submitted batch job 7")
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_receives_an_array_that_is_requeued(tmp_path):
    """With a stand-in for sbatch, srun and squeue: the request for the array, and its results."""
    pytest.importorskip("submitit.slurm.slurm")
    programs = tmp_path / "bin"
    programs.mkdir()
    script = tmp_path / "submitted.sh"
    squeue = "#!/bin/sh\nprintf '7_0 RUNNING 0\\n7_1 RUNNING 0\\n'\n"
    texts = {"sbatch": SBATCH.format(python=sys.executable, script=str(script)), "srun": SRUN, "squeue": squeue}
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    done = sweep(
        tmp_path / "sweep",
        "submitit_slurm",
        *SHORT,
        "lr_policy=fix",
        "seed=0,1",
        "hydra.launcher.slurm_partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        environment={"PATH": f"{programs}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["missed", "missed"]
    asked = script.read_text()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=1", "--array=0-1%", "--signal=USR2@120"):
        assert line in asked
