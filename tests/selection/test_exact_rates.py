"""A rate that was given arrives digit for digit, whoever passes it on."""

import pytest

from lrbench_pl.cli.verify import read_seeds
from lrbench_pl.selection.select import select
from lrbench_pl.selection.sweeper import _stem
from lrbench_pl.selection.trials import Candidate, SelectionOptions, SelectionTask
from tests.analysis.test_ranking import write

GIVEN = 0.0123456789


@pytest.mark.parametrize(
    ("rates", "own", "shares", "expected"),
    [
        pytest.param((GIVEN, 0.01234), 0.1, (1.0,), [GIVEN, 0.01234], id="rates-of-the-command-line"),
        pytest.param((), GIVEN, (1.0,), [GIVEN], id="the-optimizers-own"),
        pytest.param((), 0.1, (3.0,), [0.3], id="a-share-of-it"),
    ],
)
def test_a_selection_trains_at_the_rate_that_was_given(rates, own, shares, expected):
    options = SelectionOptions(shapes=("cosine",), rates=shares, repeats=0)
    batch = next(select(options, SelectionTask(max_steps=320, interval=10, optimizers={"sgd": own}, rates=rates)))
    assert [job.candidate.lr for job in batch] == expected


def test_two_rates_have_two_names_and_two_folders():
    near = [Candidate("cosine", "sgd", lr) for lr in (0.12345678, 0.12345679)]
    assert len({_stem(candidate) for candidate in near}) == 2
    assert len({str(candidate) for candidate in near}) == 2


@pytest.mark.parametrize("asked", ["0.0123456789", "1.23456789e-2"])
def test_runs_are_found_by_their_exact_rate(tmp_path, asked):
    write(tmp_path / "a", "tri", 100, 0, lr=GIVEN)
    write(tmp_path / "b", "tri", 100, 1, lr=0.0123457)
    assert [row.lr for row, _ in read_seeds(tmp_path, {"lr": asked}).runs] == [GIVEN]
