"""A table in a narrow terminal says what it leaves out."""

import json

import pytest

from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.show import render
from tests.analysis.test_ranking import write
from tests.cli.test_cli import call

LONG = "composite_fix_sin_linear"


@pytest.fixture
def folder(tmp_path):
    for optimizer in ("momentum", "adam"):
        for number, policy in enumerate((LONG, "tri", "cos")):
            for seed in range(8):
                steps = None if seed == 7 else 120 + 20 * seed + 100 * number
                write(tmp_path, policy, steps, seed, optimizer=optimizer, test_accuracy=0.97)
            write(tmp_path, policy, None, 9, status="diverged", best=None, optimizer=optimizer)
    return tmp_path


def table_and_note(text):
    table, _, note = text.partition("\n\nnot shown: ")
    return table.splitlines(), " ".join(note.split())


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("baseline", [None, "cos"])
def test_every_column_is_shown_or_named(folder, width, baseline):
    ranking = rank(folder, baseline=baseline)
    lines, note = table_and_note(render(ranking, "table", width, "val/accuracy"))
    wide = render(ranking, "markdown", monitor="val/accuracy").splitlines()[0]
    heads = [" ".join(line) for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("──"))]]
    for title in (part.strip() for part in wide.strip("|").split("|")):
        shown = all(any(" ".join(word) in head for head in heads) for word in title.split())
        assert shown != (title in note.partition(";")[0].split(", ")), title
    assert max(map(len, lines)) <= width
    assert not note or note.endswith("use a wider terminal or --format csv")


def test_titles_stay_whole_in_80_characters_and_intervals_are_named(folder):
    lines, note = table_and_note(render(rank(folder, baseline="cos"), "table", 80, "val/accuracy"))
    assert " optimizer " in lines[1]
    assert "intervals of speed-up" in note


def test_the_note_is_below_the_table_of_the_commands(folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = call(monkeypatch, capsys, "rank", folder)[1]
    assert out.rstrip().endswith("--format csv")
    monkeypatch.setenv("COLUMNS", "300")
    assert "not shown" not in call(monkeypatch, capsys, "rank", folder)[1]


def test_a_large_number_of_seeds_is_not_shown_exactly(tmp_path):
    for seed in range(5):
        write(tmp_path, "a", 100 + 40 * seed, seed)
        write(tmp_path, "b", 101 + 40 * seed, seed)
    ranking = rank(tmp_path)
    exact = ranking["more_seeds"].to_list()[1]
    assert exact > 100
    assert "| > 100 |" in render(ranking, "markdown")
    assert json.loads(render(ranking, "json"))[1]["more_seeds"] == exact
