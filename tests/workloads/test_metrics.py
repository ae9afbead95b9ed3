"""The paper's metrics against plain numpy."""

import math

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from lrbench_pl.workloads.metrics import Confidence, CrossEntropy


def reference(logits, labels):
    """Sample by sample, as the definitions read."""
    confident = {}
    for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        share = np.exp(row - row.max())
        share /= share.sum()
        if share.argmax() == label:
            confident.setdefault(label, []).append(share.max())
    everything = [value for values in confident.values() for value in values]
    return {
        "confidence": np.mean(everything),
        "confidence_std": np.std(everything),
        "cdac": np.std([np.mean(values) for values in confident.values()]),
    }


def batches(seed, sizes=(40, 17, 3), classes=6):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        logits = torch.randn(size, classes, generator=generator) * 2
        yield logits, torch.randint(0, classes, (size,), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_confidence_over_several_batches(seed):
    metric = Confidence(num_classes=6)
    for logits, labels in batches(seed):
        metric.update(logits, labels)
    expected = reference(*(torch.cat(parts) for parts in zip(*batches(seed), strict=True)))
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected, rel=1e-9)


def test_a_class_that_is_never_right_is_left_out():
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])  # class 2 is taken for class 0
    metric = Confidence(num_classes=3)
    metric.update(logits, labels)
    found = {name: float(value) for name, value in metric.compute().items()}
    first, second = math.exp(3) / (math.exp(3) + 2), math.e / (math.e + 2)
    assert found["confidence"] == pytest.approx((first + second) / 2)
    assert (found["cdac"], found["confidence_std"]) == pytest.approx(((first - second) / 2,) * 2)


def test_nothing_right_is_no_number():
    metric = Confidence(num_classes=3)
    metric.update(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([1]))
    assert all(math.isnan(value) for value in metric.compute().values())


def test_one_value_spreads_by_nothing():
    metric = Confidence(num_classes=2)
    for _ in range(7):
        metric.update(torch.tensor([[0.1, 0.7]]), torch.tensor([1]))
    assert float(metric.compute()["confidence_std"]) == pytest.approx(0, abs=1e-7)


def test_it_starts_anew_after_a_reset_and_fits_a_collection():
    metrics = MetricCollection({"confidence": Confidence(num_classes=6)})
    for seed in (0, 1):
        metrics.reset()
        for logits, labels in batches(seed):
            metrics.update(logits, labels)
    expected = reference(*(torch.cat(parts) for parts in zip(*batches(1), strict=True)))
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(expected)


def test_the_mean_loss_weighs_samples_not_batches():
    metric = CrossEntropy()
    for logits, labels in batches(0):
        metric.update(logits, labels)
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*batches(0), strict=True))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert float(metric.compute()) == pytest.approx(-np.log(shares[np.arange(60), labels]).mean(), rel=1e-6)


def test_a_lost_training_has_no_loss():
    metric = CrossEntropy()
    metric.update(torch.tensor([[1.0, 2.0], [math.nan, 0.0]]), torch.tensor([0, 1]))
    assert math.isnan(metric.compute())
