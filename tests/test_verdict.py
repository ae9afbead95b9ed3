"""Which targets are refused, and what is said of them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from lrbench_pl.verdict import check_target


@pytest.mark.parametrize(
    "monitor",
    [
        *(
            "val/accuracy",
            "val_acc",
            "valAcc",
            "val/acc1",
            "val/acc@5",
            "top5",
            "val/top-5",
            "BinaryAUROC",
            "val/auroc",
        ),
        *(
            "f1",
            "val/F1Score",
            "f1_score_macro",
            "val_acc_epoch",
            "val/accuracy/dataloader_idx_0",
            "mIoU",
            "val/mAP@50",
        ),
    ],
)
def test_a_percentage_as_the_target_of_a_share_is_refused_with_the_share(monitor):
    check_target(0.95, monitor, "max")
    check_target(1, monitor, "max")
    with pytest.raises(ValueError, match=r"must be at most 1 for '.*', got 95; did you mean 0.95\?$"):
        check_target(95, monitor, "max")


@pytest.mark.parametrize(
    "monitor",
    [
        *(
            "val/loss",
            "perplexity",
            "bleu_score",
            "reward",
            "val/score",
            "psnr",
            "val/acc_percent",
            "val/accuracy_loss",
        ),
        *("error", "f", "r", "val/rouge1"),
    ],
)
def test_any_finite_number_is_a_target_of_other_metrics(monitor):
    for target in (-3.5, 0, 0.5, 95, 1e9):
        check_target(target, monitor, "max")


def test_any_finite_number_is_a_target_that_is_fallen_to():
    check_target(95, "val/accuracy", "min")


def test_what_is_not_a_percentage_gets_no_guess():
    with pytest.raises(ValueError, match=r"^--target must be at most 1 for 'val/r2', got 1.5$"):
        check_target(1.5, "val/r2", "max", name="--target")


@pytest.mark.parametrize("target", [math.nan, math.inf, "0.9", True])
def test_a_target_is_a_finite_number(target):
    with pytest.raises(ValueError, match="must be a finite number or None, got"):
        check_target(target, "val/loss", "min")


def test_no_target_is_no_mistake():
    check_target(None, "val/accuracy", "max")


def test_the_command_line_can_import_it_without_torch():
    code = "import sys, lrbench_pl.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
