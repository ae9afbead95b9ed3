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


STARTS = """
import os, subprocess, sys
child = '''
import json, os, sys
print(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ), os.getppid()]))
print(os.getsid(0) == os.getpid(), hasattr(sys, "begun"))
print("a problem", file=sys.stderr)
os.write(int(sys.argv[1]), b"kept")
'''
with open("child.py", "w") as file:
    file.write(child)
sys.begun = True
reading, writing = os.pipe()
for session in (False, True):
    done = subprocess.run(
        [sys.executable, "child.py", str(writing), "b c"], pass_fds=[writing], cwd=os.getcwd(),
        env={"MINE": "1", "LC_ALL": "C.UTF-8"}, start_new_session=session, capture_output=True, text=True,
    )
    print(done.returncode, done.stdout.replace(str(os.getpid()), "PARENT"), done.stderr, os.read(reading, 10))
os.close(writing)
print(os.read(reading, 10))  # nobody else could write
print(subprocess.run([sys.executable, "-c", "import os; os.abort()"]).returncode)
print(subprocess.run([sys.executable, "-u", "-m", "no_such_module"], capture_output=True).returncode)
with open("child.py", "w") as file:
    file.write("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
print(subprocess.run([sys.executable, "child.py"]).returncode)
"""


def test_what_it_starts_is_told_what_a_program_is_told(script, tmp_path):
    words = script(STARTS)
    forked = forks.run(words, tmp_path, {}, timeout=300)
    own = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=300)
    assert (forked.returncode, forked.stdout, forked.stderr) == (own.returncode, own.stdout, own.stderr)
    assert own.returncode == 0


def test_what_it_starts_is_forked_and_ends_with_its_group(script, tmp_path):
    (tmp_path / "child.py").write_text("import sys, time\nprint('torch' in sys.modules, flush=True)\ntime.sleep(600)")
    words = script("import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])")
    with (tmp_path / "out").open("w") as out:
        process = forks.start(words, tmp_path, {}, out)
    assert wait_for(lambda: (tmp_path / "out").read_text() == "True\n", limit_s=60)
    process.kill_group()
    assert wait_for(lambda: not group(process.pid), limit_s=30)
