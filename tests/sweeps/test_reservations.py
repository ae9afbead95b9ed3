"""Folders that a running sweep has reserved."""

import os
import signal
import subprocess
import sys

from lrbench_pl.sweeps.reservations import Reservations, clean_sweep


def test_another_sweep_sees_what_is_reserved_as_long_as_the_first_runs(tmp_path):
    with Reservations(tmp_path) as first, Reservations(tmp_path) as second:
        first.reserve({tmp_path / "0": "a", tmp_path / "1": "b"})
        found = second.others()
        assert {folder.name: reserved.run_id for folder, reserved in found.items()} == {"0": "a", "1": "b"}
        assert f"process {os.getpid()} on " in found[tmp_path / "0"].holder
        assert first.others() == {}
    with Reservations(tmp_path) as third:
        assert third.others() == {}
    assert not (tmp_path / ".sweeps").exists()


def test_what_a_killed_sweep_has_reserved_is_free(tmp_path):
    code = (
        "import os, pathlib, signal, sys; from lrbench_pl.sweeps.reservations import Reservations\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with Reservations(folder) as held: held.reserve({folder / '0': 'a'}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".sweeps/*.json"))) == 1
    with Reservations(tmp_path) as reservations:
        assert reservations.others() == {}
        assert not list(tmp_path.glob(".sweeps/*.json"))


def test_a_damaged_reservation_reserves_nothing(tmp_path):
    with Reservations(tmp_path) as first, Reservations(tmp_path) as second:
        first.reserve({tmp_path / "0": "a"})
        (path,) = tmp_path.glob(".sweeps/*.json")
        for damaged in ("[1]", "{}", '{"holder": 1, "runs": 3}', "[" * 100_000, "\xff"):
            path.write_text(damaged)
            assert second.others() == {}


def test_temporary_files_are_removed_where_no_sweep_runs(tmp_path):
    left = tmp_path / ".selection.json.0123456789ab.tmp"
    left.write_text("half")
    with Reservations(tmp_path) as running:
        running.reserve({tmp_path / "0": "a"})
        clean_sweep(tmp_path)
        assert left.exists()
    clean_sweep(tmp_path)
    assert not left.exists()
    clean_sweep(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
