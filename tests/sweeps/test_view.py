"""The view of a sweep."""

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lrbench_pl.runs.folder import add_note, hold_folder
from lrbench_pl.runs.result import RunResult
from lrbench_pl.sweeps.view import SweepView, format_duration, read_sweep


def row(seed, status="missed", best=0.9):
    return RunResult(
        run_id=str(seed),
        policy="tri",
        seed=seed,
        status=status,
        max_steps=10,
        best_value=best,
        best_step=10,
        steps_run=10,
    )


def fill(folder, done):
    with hold_folder(folder, done.run_id, {"policy_name": "tri", "seed": done.seed}):
        done.write(folder)
    return done


def show(folders, terminal, work):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80 if terminal else 120, highlight=False)
    with SweepView(folders, "sweep", console=console) as view:
        work(view)
    return console.file.getvalue()


def test_plain_lines_without_a_terminal(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    fill(folders[0], row(0))

    def work(view):
        view.ended(folders[1], fill(folders[1], row(1)))
        failed = fill(folders[2], row(2, "failed"))
        add_note(folders[2], "resuming from step=000000010.ckpt")
        view.ended(folders[2], failed)

    text = show(folders, terminal=False, work=work)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "3 jobs in sweep: 1 finished before, 0 to resume"
    assert lines[1].startswith("2 of 3: tri (seed 1): ran 10 steps without a target, best 0.900 (")
    assert lines[2] == "2: resuming from step=000000010.ckpt"
    assert lines[3].startswith("3 of 3: tri (seed 2): failed: ")
    assert lines[4].startswith("3 jobs: 2 without a target, 1 failed; ")


def test_a_live_view_on_a_terminal_reads_the_folders(tmp_path, monkeypatch):
    """The second job is found by its folder alone."""
    monkeypatch.setenv("TERM", "xterm")
    folders = [tmp_path / str(i) for i in range(3)]

    def work(view):
        fill(folders[0], row(0, best=0.8))
        with hold_folder(folders[1], "1", {"policy_name": "exp", "seed": 7}):
            time.sleep(1.5)

    text = show(folders, terminal=True, work=work)
    for words in (
        "1 of 3 done, 1 running",
        "best so far: 0.800 at step 10 by tri (seed 0)",
        "running: 1 (exp, seed 7)",
    ):
        assert words in text


def test_plain_lines_on_a_terminal_that_cannot_draw(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    folders = [tmp_path / str(i) for i in range(2)]

    def work(view):
        assert view._live is None
        for folder in folders:
            view.ended(folder, fill(folder, row(int(folder.name))))

    text = show(folders, terminal=True, work=work)
    assert "\x1b[?25l" not in text  # no cursor to hide
    assert "1 of 2: tri (seed 0): ran 10 steps" in text
    assert "2 jobs: 2 without a target; " in text


def test_the_time_left_decreases_while_a_job_runs(tmp_path, monkeypatch):
    folders = [tmp_path / str(i) for i in range(4)]
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lrbench_pl.sweeps.view.time.monotonic", lambda: clock.now)
    console = Console(file=io.StringIO(), width=120)
    view = SweepView(folders, "sweep", console=console)
    said = []
    for clock.now in (10.0, 25.0, 45.0):
        if clock.now == 10.0:
            view.ended(folders[0], fill(folders[0], row(0)))
        console.file.truncate(0)
        console.print(view._render())
        said.append(re.findall(r"\d+ s left", console.file.getvalue()))
    assert said == [["30 s left"], ["15 s left"], []]  # late, it promises nothing


def test_the_best_result_by_mode(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    for i, best in enumerate((0.5, 0.7, None)):
        fill(folders[i], row(i, best=best))
    seen = read_sweep(folders)
    assert (seen.ended, seen.best("max").seed, seen.best("min").seed) == (3, 1, 0)
    assert read_sweep([tmp_path / "nothing"]).best() is None


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min")])
def test_durations(seconds, words):
    assert format_duration(seconds) == words
