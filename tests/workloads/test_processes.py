"""Two processes share what one would have seen."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.workloads import numbered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """What one process saw, and what each of two did."""
    folder = tmp_path_factory.mktemp("notes")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for processes in ("1", "2"):
        words = [sys.executable, "-m", "tests.workloads.numbered", folder, processes]
        done = forks.run(words, root, environment, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json")]


def test_each_takes_its_half_of_every_global_batch(notes):
    one, first, second = notes
    assert len(one["train"]) == 12
    assert [a + b for a, b in zip(first["train"], second["train"], strict=True)] == one["train"]


def test_an_epoch_shows_each_sample_once(notes):
    one, *_ = notes
    n = numbered.TRAIN - numbered.HELD_OUT
    shown = [number for batch in one["train"] for number in batch]
    assert sorted(shown[:n]) == sorted(shown[n : 2 * n])
    assert len(set(shown[:n])) == n
    assert not set(shown) & set(one["checked"])


def test_a_check_shows_each_sample_once_though_the_shares_differ(notes):
    one, first, second = notes
    assert abs(len(first["checked"]) - len(second["checked"])) == 1
    assert sorted(first["checked"] + second["checked"]) == sorted(one["checked"])
    assert len(one["checked"]) == len(set(one["checked"])) == numbered.HELD_OUT


def test_metrics_are_those_of_the_whole_set(notes):
    one, first, second = notes
    assert set(one["tested"]) == {
        f"test/{name}" for name in ("accuracy", "top5", "loss", "confidence", "confidence_std", "cdac")
    }
    assert first["tested"] == second["tested"] == pytest.approx(one["tested"], rel=1e-6)
    assert 0 < one["tested"]["test/accuracy"] < 1
    # two halves of a batch, averaged, are the batch up to rounding
    assert first["metrics"] == second["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert {"val/accuracy", "val/loss"} <= set(one["metrics"])
