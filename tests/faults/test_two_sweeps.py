"""Two sweeps that are started in one folder."""

import pytest

from tests import forks
from tests.faults.sweeps import ENVIRONMENT, LONG, command, end, rows, wait_for

pytestmark = pytest.mark.slow


def test_two_different_sweeps_started_at_the_same_moment(tmp_path):
    """One runs whole, the other is refused in one line; neither loses a job."""
    folder = tmp_path / "sweep"
    jobs = [(*LONG, "max_steps=200", f"lr_policy={name}", "seed=0,1,2") for name in ("fix", "tri")]
    with (tmp_path / "0.txt").open("w") as one, (tmp_path / "1.txt").open("w") as two:
        both = [
            forks.start(command(folder, "basic", *words), tmp_path, ENVIRONMENT, out)
            for words, out in zip(jobs, (one, two), strict=True)
        ]
        try:
            codes = [process.wait(timeout=300) for process in both]
        finally:
            for process in both:
                end(process)
    texts = [(tmp_path / name).read_text() for name in ("0.txt", "1.txt")]
    assert sorted(codes) == [0, 1], texts
    (refused,) = [text for text, code in zip(texts, codes, strict=True) if code]
    (line,) = [line for line in refused.splitlines() if not line.startswith("preparing")]
    assert "the folder belongs to another sweep" in line
    assert "choose another" in line
    found = rows(folder)
    assert len(found) == 3
    assert len({row["policy"] for row in found}) == 1
    assert {row["status"] for row in found} == {"missed"}
    assert not (folder / ".sweeps").exists()


def test_the_folders_of_a_killed_sweep_are_free(tmp_path):
    folder = tmp_path / "sweep"
    first = forks.start(command(folder, "basic", *LONG, "lr_policy=fix", "seed=0,1"), tmp_path, ENVIRONMENT)
    try:
        assert wait_for(lambda: list(folder.glob(".sweeps/*.json")))
    finally:
        end(first)
    for path in folder.glob("*/run.json"):
        path.unlink()
    other = forks.run(
        command(folder, "basic", *LONG, "max_steps=200", "lr_policy=tri", "seed=0,1"), tmp_path, ENVIRONMENT, 300
    )
    assert other.returncode == 0, other.stdout + other.stderr
    assert [row["policy"] for row in rows(folder)] == ["tri", "tri"]
    assert not (folder / ".sweeps").exists()


def test_a_sweep_that_overlaps_another_runs_whole(tmp_path):
    """What both have is trained once; the rest of the second gets folders of its own."""
    folder = tmp_path / "sweep"
    jobs = [(*LONG, "lr_policy=fix", f"seed={seeds}") for seeds in ("0,1", "1,0,2")]
    first = forks.start(command(folder, "basic", *jobs[0]), tmp_path, ENVIRONMENT)
    try:
        assert wait_for(lambda: list(folder.glob(".sweeps/*.json")))
        second = forks.run(command(folder, "basic", *jobs[1]), tmp_path, ENVIRONMENT, 300)
        assert second.returncode == 0, second.stdout + second.stderr
        assert first.wait(timeout=300) == 0
    finally:
        end(first)
    assert sorted(row["seed"] for row in rows(folder)) == [0, 1, 2]
