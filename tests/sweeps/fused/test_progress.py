"""The progress of fused jobs in the view of the sweep."""

import io

from rich.console import Console

from lrbench_pl.runs.folder import hold_folder
from lrbench_pl.sweeps.fused.progress import Progress, clear_progress, read_progress
from lrbench_pl.sweeps.view import SweepView


def test_progress_is_written_and_read(tmp_path):
    assert read_progress(tmp_path) == []
    first, second = Progress(8, 20, 100, 2.0), Progress(4, 60, 100, 3.0)
    first.write(tmp_path / ".fused" / "a")
    second.write(tmp_path / ".fused" / "b")
    assert read_progress(tmp_path) == [first, second]
    (tmp_path / ".fused" / "b" / "progress.json").write_text('{"jobs": 1')
    assert read_progress(tmp_path) == [first]
    (tmp_path / ".fused" / "b" / "step=000000010.ckpt").touch()
    clear_progress(tmp_path)
    assert read_progress(tmp_path) == []
    assert [path.name for path in (tmp_path / ".fused").iterdir()] == ["b"]


def test_the_view_shows_the_steps_of_fused_jobs_and_the_time_they_need(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    Progress(3, 250, 1000, 100.0).write(tmp_path / ".fused" / "a")
    folder = tmp_path / "0"
    with (
        hold_folder(folder, "1", {"policy_name": "tri", "seed": 0}),
        SweepView([folder], tmp_path, console=console),
    ):
        pass
    text = console.file.getvalue()
    assert "3 jobs fused, at step 250 of 1000" in text
    assert "5 min 0 s left" in text
    assert "running: 0 (tri, seed 0)" in text
