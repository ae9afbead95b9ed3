"""What is written and shown: no passwords, nothing through links of others, nothing that a terminal obeys."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from lrbench_pl.analysis.load import load_runs
from lrbench_pl.files import open_to_append, write_atomically, write_output
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.describe import plain_config
from lrbench_pl.runs.folder import Record
from lrbench_pl.runs.hydra_files import write_multirun
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.selection.exchange import read_sources
from tests import forks
from tests.analysis.test_ranking import write
from tests.cli.test_cli import call
from tests.faults.sweeps import ENVIRONMENT, LIMIT_S, command, rows

SECRET = "hunter2"
URL = f"postgresql://me:{SECRET}@127.0.0.1:1/runs"
SHORT = ("max_steps=4", "check_every=2", "target=null", "lr_policy=fix")
ESCAPE = "\x1b]0;title\x07\n\u202etri"


def texts(folder):
    return {path: path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with a password in its configuration, whose files would be written through links of others."""
    above = tmp_path_factory.mktemp("written")
    victim = above / "victim"
    victim.write_text("untouched")
    folder = above / "sweep"
    (folder / "0" / ".hydra").mkdir(parents=True)
    for name in ("multirun.yaml", "0/run.log", "0/.hydra/config.yaml", "0/.hydra/hydra.yaml", "0/result.json"):
        (folder / name).symlink_to(victim)
    (above / "elsewhere").mkdir()
    (folder / "1").mkdir()
    (folder / "1" / ".hydra").symlink_to(above / "elsewhere")
    words = command(folder, "basic", *SHORT, f"+note={URL}", "lr_policy=fix,best", f"+lr_policy.db={URL}")
    words = [word for word in words if word != "lr_policy=fix"]
    words = [word.replace("+lr_policy.db", "++lr_policy.db") for word in words]
    done = forks.run(words, above, ENVIRONMENT, LIMIT_S)
    return above, done


def test_a_password_is_neither_written_nor_shown(swept):
    above, done = swept
    assert SECRET not in done.stdout + done.stderr
    assert [path for path, text in texts(above).items() if SECRET in text] == []
    overrides = OmegaConf.load(above / "sweep" / "1" / ".hydra" / "overrides.yaml")
    assert any(each.startswith("+note=postgresql") and "***@127.0.0.1" in each for each in overrides)
    assert "me:***@127.0.0.1:1" in (above / "sweep" / "multirun.yaml").read_text()
    assert len(rows(above / "sweep")) == 2


def test_nothing_is_written_through_a_link(swept):
    above, _ = swept
    assert (above / "victim").read_text() == "untouched"
    assert list((above / "elsewhere").iterdir()) == []
    for name in ("multirun.yaml", "0/run.log", "0/.hydra/config.yaml", "1/.hydra/config.yaml", "0/result.json"):
        path = above / "sweep" / name
        assert path.is_file()
        assert not path.is_symlink()


def test_the_output_of_a_job_is_appended_to_a_regular_file(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    link, pipe, log = tmp_path / "link", tmp_path / "pipe", tmp_path / "output.log"
    link.symlink_to(victim)
    os.mkfifo(pipe)
    log.write_text("before ")
    for path in (link, pipe, log):
        with open_to_append(path) as file:
            file.write("after")
    assert (victim.read_text(), link.read_text(), pipe.read_text()) == ("untouched", "after", "after")
    assert log.read_text() == "before after"


def test_a_configuration_holds_no_password_wherever_it_goes():
    cfg = compose([f"+lr_policy.db={URL}", f"+note='postgresql://host/runs?user=me&password={SECRET}'"])
    spec = RunSpec.from_config(cfg)
    assert SECRET not in json.dumps([plain_config(cfg), spec.to_dict(), dict(spec.settings)])
    other = compose(
        [f"+lr_policy.db={URL.replace(SECRET, 'changed')}", "+note='postgresql://host/runs?user=me&password=x'"]
    )
    assert RunSpec.from_config(other).run_id == spec.run_id


def test_a_run_of_a_version_that_kept_the_password_is_recognised(tmp_path):
    spec = RunSpec.from_config(compose([f"+lr_policy.db={URL}"]))
    stored = json.loads(json.dumps(spec.to_dict()).replace("***", SECRET))
    Record("of then", stored, "2026-01-01T00:00:00+00:00", "host", 1).write(tmp_path)
    record = Record.read(tmp_path)
    assert record.run_id == spec.run_id
    assert SECRET not in json.dumps(record.configuration)


def test_a_file_that_a_user_names_may_be_a_link_or_a_pipe(tmp_path):
    """A link stays one, and a device is not replaced by a file."""
    (tmp_path / "old.html").write_text("old")
    (tmp_path / "link.html").symlink_to("old.html")
    write_output(tmp_path / "link.html", "new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "old.html").read_text() == "new"

    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_output(tmp_path / "pipe", "piped")
    assert os.read(reader, 100) == b"piped"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_files_have_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a.txt", "text")
        open_to_append(tmp_path / "output.log").close()
        write_multirun(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    finally:
        os.umask(before)
    for name in ("a.txt", "output.log", "multirun.yaml"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask, name


def test_a_full_disk_at_the_first_file_of_a_sweep_is_one_line(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompactHydraException, match=r"cannot write .*multirun\.yaml: No space left on device"):
        write_multirun(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert list(tmp_path.iterdir()) == []


def test_another_folder_for_the_configuration_is_refused(tmp_path):
    words = command(tmp_path / "sweep", "basic", *SHORT, "hydra.output_subdir=mine")
    done = forks.run(words, tmp_path, ENVIRONMENT, LIMIT_S)
    assert done.returncode == 1
    assert "hydra.output_subdir must be null, got 'mine'" in done.stderr


# -- names of others ------------------------------------------------------------------------------------------------


@pytest.fixture
def named(tmp_path):
    """Runs whose names come from a stranger."""
    at = tmp_path / "a\nb\x1b[2J"
    for policy in (ESCAPE, "=cmd|' /C calc'!A0", "-1", "@x", "[click](http://x)<img src=x>", "a|b"):
        for seed in range(2):
            write(at, policy, 100, seed, best=0.9)
    broken = write(at, "broken", 100, 0)
    (broken / "result.json").write_text("{")
    path = next(iter(at.glob("0/result.json")))  # past what writes them
    path.write_text(json.dumps({**json.loads(path.read_text()), "policy": ESCAPE, "message": ESCAPE}))
    return at


def is_safe(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_names_of_others_are_escaped_in_every_format(named, monkeypatch, capsys, form):
    code, out, err = call(monkeypatch, capsys, "rank", named, "--format", form)
    assert code == 0
    assert is_safe(out)
    assert is_safe(err)
    assert "a\\nb\\x1b[2J" in err
    if form == "csv":
        found = out
        assert "'=cmd" in found
        assert "'@x" in found
        assert "'-1" not in found
    if form == "markdown":
        assert "<img" not in out
        assert "](" not in out.replace("\\](", "")


def test_a_report_executes_and_obeys_nothing(named, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "report", named, "-o", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_an_export_is_no_formula_and_is_read_back(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "runs", "=1+1", 100, 0)
    (folder / "policy.yaml").write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.1\n")
    db, path = tmp_path / "runs.db", tmp_path / "runs.csv"
    assert call(monkeypatch, capsys, "db", "add", tmp_path / "runs", "--db", db)[0] == 0
    assert call(monkeypatch, capsys, "db", "export", "--db", db, "-o", path)[0] == 0
    assert "'=1+1" in path.read_text()
    (run,) = read_sources([path]).runs
    assert run.result.policy == "=1+1"


def test_an_error_shows_its_path_escaped(tmp_path, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "rank", Path(f"{tmp_path}/\x1b[2J"))
    assert code == 2
    assert is_safe(err)
    assert load_runs([write(tmp_path, "tri", 100, 0)]).table.height == 1


def test_a_record_of_others_is_safe_to_show(tmp_path):
    Record("x", {"policy_name": ESCAPE}, "2026-01-01T00:00:00+00:00", ESCAPE, 1, notes=(ESCAPE,)).write(tmp_path)
    record = Record.read(tmp_path)
    assert is_safe(record.host + record.notes[0])
    assert "\n" not in record.notes[0]
    from lrbench_pl.sweeps.view import _name

    assert is_safe(_name(tmp_path))
