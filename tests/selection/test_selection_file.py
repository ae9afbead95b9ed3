"""``selection.json`` and ``lookup.json``: their format number, and files of other formats."""

import json

import pytest

from lrbench_pl.files import FORMAT, NewerFormatError, ResultError, version
from lrbench_pl.policies import Polynomial
from lrbench_pl.runs.options import UserError
from lrbench_pl.selection.best import _read, _write
from lrbench_pl.selection.lookup import Recommendation
from lrbench_pl.selection.request import SelectionError
from lrbench_pl.selection.selection_file import SELECTION_FILE, read_asked, read_selection, write_selection
from lrbench_pl.selection.sweeper import _own_horizon
from lrbench_pl.selection.trials import Candidate, Selection
from tests.selection.test_sweeper import sweep

ASKED = {"settings": {"eta": 2.0}, "task": {"max_steps": 1000}, "configuration": {"task": {"target": 0.9}}}
FOUND = Selection(Candidate("cosine", "adam", 0.1), 250, "reached")


def change(folder, **fields):
    path = folder / SELECTION_FILE
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_the_format_is_written(tmp_path):
    write_selection(tmp_path, ASKED, FOUND)
    content = json.loads((tmp_path / SELECTION_FILE).read_text())
    assert (content["format"], content["version"]) == (FORMAT, version())
    assert (read_asked(tmp_path), read_selection(tmp_path)["found"]["horizon"]) == (ASKED, 250)


def test_a_file_without_a_format_is_format_1(tmp_path):
    write_selection(tmp_path, ASKED, FOUND)
    change(tmp_path, format=None, version=None)
    assert (read_asked(tmp_path), _own_horizon(tmp_path / "policy.yaml", 1000)) == (ASKED, 250)


def test_a_later_format_is_refused_with_the_version_to_install(tmp_path):
    write_selection(tmp_path, ASKED, FOUND)
    change(tmp_path, format=FORMAT + 7, version="9.8")
    message = rf"selection.json: written in format {FORMAT + 7}, .*; install lrbench_pl 9.8 or later"
    with pytest.raises(NewerFormatError, match=message):
        read_selection(tmp_path)
    with pytest.raises(NewerFormatError, match=message):  # not taken for a policy of unknown horizon
        _own_horizon(tmp_path / "policy.yaml", 1000)
    with pytest.raises(SelectionError, match=message):
        sweep(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"asked": {"configuration": {}}}', '{"asked": 1, "format": "new"}'])
def test_what_is_no_selection_is_refused(tmp_path, text):
    (tmp_path / SELECTION_FILE).write_text(text)
    with pytest.raises(ResultError, match=r"selection.json: "):
        read_asked(tmp_path)
    with pytest.raises(SelectionError, match=r"give another hydra\.sweep\.dir"):
        sweep(tmp_path)


def test_a_kept_look_up_has_a_format_too(tmp_path):
    path = tmp_path / "lookup.json"
    found = Recommendation(Polynomial(0.1, 100), "linear", 3, 3, 0.5, 50.0, 0.0, (), 1.0, ("a", "b", "c"))
    _write(path, found, "")
    content = json.loads(path.read_text())
    assert (content["format"], _read(path)) == (FORMAT, found)
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in ("format", "version")}))
    assert _read(path) == found
    path.write_text(json.dumps({**content, "format": FORMAT + 1, "version": "9.8"}))
    with pytest.raises(UserError, match=r"lookup.json: .*install lrbench_pl 9.8 or later"):
        _read(path)
