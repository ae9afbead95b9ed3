"""The folder of each job, in a sweep that was started before."""

from types import SimpleNamespace

import pytest
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from lrbench_pl.runs.folder import Record
from lrbench_pl.sweeps import launch
from lrbench_pl.sweeps.composer import StoredConfig
from lrbench_pl.sweeps.launch import Job, SweepLauncher
from lrbench_pl.sweeps.reservations import Reserved


def assign(sweep, *run_ids):
    def config(number):
        return OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep), "subdir": str(number)}}})

    launcher = SimpleNamespace(config=config(0), hydra_context=None, task_function=None, place=None)
    jobs = [
        Job(number, (), StoredConfig(config(number)), sweep / str(number), run_id)
        for number, run_id in enumerate(run_ids)
    ]
    assigned = SweepLauncher(launcher)._assign_folders(jobs)
    for job in assigned:
        assert launch.job_folder(job.config) == job.folder
    return [job.folder.name for job in assigned]


@pytest.fixture(autouse=True)
def all_configurations_fit(monkeypatch):
    monkeypatch.setattr(launch, "_refusal", lambda job: None)


def start(sweep, *run_ids):
    for number, run_id in enumerate(run_ids):
        folder = sweep / str(number)
        folder.mkdir()
        Record(run_id, {}, "2026-01-01T00:00:00+00:00", "here", 1).write(folder)


@pytest.mark.parametrize(
    ("started", "jobs", "folders"),
    [
        pytest.param("", "abc", "012", id="a-new-sweep"),
        pytest.param("abc", "abc", "012", id="the-same-sweep"),
        pytest.param("ab", "ba", "10", id="another-order"),
        pytest.param("ab", "bca", "130", id="a-job-between"),
        pytest.param("ab", "b", "1", id="a-smaller-sweep"),
        pytest.param("aab", "aab", "012", id="equal-jobs"),
        pytest.param("ab", "aab", "031", id="an-equal-job-more"),
    ],
)
def test_jobs_return_to_their_folders(tmp_path, started, jobs, folders):
    start(tmp_path, *started)
    assert assign(tmp_path, *jobs) == list(folders)


def test_a_job_whose_configuration_cannot_be_resolved_moves_no_other(tmp_path):
    assert assign(tmp_path / "new", "a", None, "b") == ["0", "1", "2"]


@pytest.mark.parametrize("has_started", [False, True])
@pytest.mark.parametrize("subdir", ["0", "16-steps/0"])
def test_the_same_run_of_another_process_is_waited_for(tmp_path, subdir, has_started):
    """In a selection the folders are nested; the other process may have started the run at any moment."""
    folder, other = tmp_path / subdir, Reserved("b", "process 1")
    folder.mkdir(parents=True)
    if has_started:
        Record("a", {}, "2026-01-01T00:00:00+00:00", "here", 1).write(folder)

    def assigned(run_id, reserved):
        stored = StoredConfig(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path), "subdir": subdir}}}))
        launcher = SimpleNamespace(config=stored.load(), hydra_context=None, task_function=None, place=None)
        (job,) = SweepLauncher(launcher)._assign_folders([Job(0, (), stored, folder, run_id)], reserved)
        return job.folder

    assert assigned("a", {folder: Reserved("a", "process 1")}) == folder
    with pytest.raises(CompactHydraException, match="reserved by process 1, which runs another sweep"):
        assigned("c", {folder: other})
