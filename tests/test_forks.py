"""A forked program is what a program of its own would be."""

import signal
import subprocess
import sys

import pytest

from tests import forks
from tests.faults.sweeps import group, wait_for

TELLS = """
import json, os, sys
print(json.dumps([__name__, sys.argv, os.getcwd(), os.environ.get("MINE"), "HOME" in os.environ]))
print(os.getsid(0) == os.getpid())
print("a problem", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path):
    def write(text):
        (tmp_path / "script.py").write_text(text)
        return [sys.executable, tmp_path / "script.py", "a", "b c"]

    return write


def test_it_is_told_what_a_program_is_told(script, tmp_path):
    words = script(TELLS)
    forked = forks.run(words, tmp_path, {"MINE": "1"}, timeout=300)
    own = subprocess.run(
        words, cwd=tmp_path, env={"MINE": "1"}, capture_output=True, text=True, start_new_session=True, timeout=300
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (own.returncode, own.stdout, own.stderr)
    assert own.returncode == 3


@pytest.mark.parametrize(("text", "code"), [("", 0), ("raise ValueError('no')", 1), ("import os; os.abort()", -6)])
def test_its_end_is_known(script, tmp_path, text, code):
    done = forks.run(script(text), tmp_path, {}, timeout=300)
    assert done.returncode == code
    assert ("ValueError: no" in done.stderr) is (code == 1)


def test_a_signal_reaches_it(script, tmp_path):
    words = script(
        "import time\ntry:\n    open('begun', 'w')\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    raise SystemExit(7)"
    )
    process = forks.start(words, tmp_path, {})
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 7


def test_what_takes_too_long_is_killed_with_its_children(script, tmp_path):
    words = script("import os, time\nos.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    with (tmp_path / "out").open("w") as out:
        process = forks.start(words, tmp_path, {}, out)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    while len((tmp_path / "out").read_text().split()) < 2:
        assert process.poll() is None
    process.kill_group()
    assert process.returncode == -signal.SIGKILL
    assert wait_for(lambda: not group(process.pid), limit_s=30)
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(words, tmp_path, {}, timeout=0.05)
