"""Runs on text and tables: which metric they name, and the experiments as they are composed."""

import math
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_diabetes

from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.build import build
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.describe import headline

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
SHORT = ("max_steps=40", "check_every=10", "trainer=cpu")
TEXT = (
    *("dataset=text", f"dataset.root={ROOT}", "dataset.file=LICENSE", "dataset.context=16", "batch_size=4"),
    *("model=gpt", "model.width=16", "model.depth=1", "model.heads=2", "optimizer=adamw"),
)


def run(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return experiment.run(compose([*SHORT, f"logger.csv.save_dir={folder}", *overrides]), folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The overrides of a regression on scikit-learn's diabetes."""
    folder = tmp_path_factory.mktemp("table")
    found = load_diabetes(scaled=False)
    lines = [",".join([*found.feature_names, "progression"])]
    lines += [",".join(map(str, [*row, target])) for row, target in zip(found.data, found.target, strict=True)]
    (folder / "diabetes.csv").write_text("\n".join(lines))
    return (
        "dataset=table_regression",
        f"dataset.root={folder}",
        "dataset.file=diabetes.csv",
        "dataset.target=progression",
    )


def test_a_language_model_is_judged_by_its_loss_alone(tmp_path):
    result = run(tmp_path, *TEXT)
    assert (result.monitor, result.mode, result.target, result.dataset, result.model) == (
        *("val/loss", "min", None, "text", "gpt"),
    )
    assert 0 < result.best_value < math.log(80)
    assert result.test_value == result.test_loss
    assert result.loss_difference == pytest.approx(result.test_loss - result.train_loss)
    assert (result.test_accuracy, result.test_top5, result.confidence) == (None, None, None)
    line = headline(result)
    assert f", best loss {result.best_value:.4g}, test loss {result.test_loss:.4g}" in line
    assert "acc" not in line


def test_a_regression_is_judged_by_its_rmse_in_the_unit_of_the_target(tmp_path, table):
    result = run(tmp_path, *table, "optimizer=adamw", "target=1000")
    assert (result.monitor, result.mode, result.status, result.steps_to_target) == ("val/rmse", "min", "reached", 10)
    assert 20 < result.test_value < 200
    assert result.test_value == pytest.approx(result.test_loss**0.5 * load_diabetes().target.std(), rel=0.1)
    assert f"reached rmse 1000 at step 10 of 40, best rmse {result.best_value:.4g}, test rmse" in headline(result)


def test_a_broken_run_on_text_ends_as_the_unbroken_one(tmp_path, monkeypatch):
    from lrbench_pl.workloads.language_model import LanguageModel

    whole = run(tmp_path / "whole", *TEXT)
    step = LanguageModel.training_step

    def interrupted(self, batch, batch_idx):
        if self.trainer.global_step == 27:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", interrupted)
    broken = run(tmp_path / "broken", *TEXT, "checkpoint_every=8")
    assert (broken.status, broken.message) == ("failed", "power cut")
    monkeypatch.setattr(LanguageModel, "training_step", step)
    resumed = run(tmp_path / "broken", *TEXT, "checkpoint_every=8")
    assert resumed.status == whole.status == "missed"
    for name in ("run_id", "best_value", "best_step", "final_value", "test_loss", "train_loss", "steps_run"):
        assert getattr(resumed, name) == getattr(whole, name)


def test_a_policy_is_composed_on_text_with_exact_snapshots(tmp_path):
    result = run(tmp_path, *TEXT, "lr_policy=auto", "max_steps=120", "target=0.01")
    assert (result.status, result.steps_run) == ("missed", 120)  # a loader without a position would be a warning


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset=text",), "dataset.file must name a UTF-8 text file; give dataset.file=PATH"),
        (("dataset=table",), "dataset.file must name a CSV or Parquet file; give dataset.file=PATH"),
        (
            ("model=gpt",),
            "context must be an integer of at least 1, got None; a data set of text gives it: dataset=text",
        ),
        (TEXT[:3], "text takes a model such as model=gpt"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides, message, tmp_path):
    result = run(tmp_path, *overrides)
    assert result.status == "failed"
    assert message in result.message


def real(file):
    return [
        pytest.mark.realdata,
        pytest.mark.skipif(not (REAL / file).is_file(), reason=f"{file} is not under {REAL}"),
    ]


@pytest.mark.parametrize(
    ("name", "task", "parameters", "decayed"),
    [
        pytest.param("kjv_gpt", ("val/loss", "min", 66), 818_176, {0.0, 0.1}, id="kjv_gpt", marks=real("text/kjv.txt")),
        pytest.param(
            "letter_mlp", ("val/accuracy", "max", 26), 76_826, {0.01}, id="letter_mlp", marks=real("tabular/letter.csv")
        ),
    ],
)
def test_an_experiment_fits_its_data(name, task, parameters, decayed):
    cfg = compose([f"experiment={name}", f"dataset.root={REAL}", "trainer=cpu", "logger=none"])
    parts = build(cfg)
    assert (cfg.monitor, cfg.mode, parts.data.num_classes) == task
    assert sum(p.numel() for p in parts.module.parameters()) == parameters
    assert {group["weight_decay"] for group in parts.module.configure_optimizers().param_groups} == decayed
    assert parts.verifier.policy(cfg.max_steps - 1) < 1e-5 * cfg.lr
    inputs, target = next(parts.data.train_dataloader())
    assert len(inputs) == len(target) == cfg.batch_size
    assert torch.isfinite(parts.module.loss(parts.module(inputs), target))
