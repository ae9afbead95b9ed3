"""Accuracy, mean cross-entropy and the paper's confidence metrics, as torchmetrics that also sum over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric


class Accuracy(Metric):
    """Top-1 accuracy over all samples, as the exact quotient of two counts.

    It is float64, so that a target such as 286 of 300 is reached at equality.

    Example:
        >>> metric = Accuracy()
        >>> metric.update(torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]]), torch.tensor([0, 1, 1]))
        >>> float(metric.compute()) == 2 / 3
        True
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("correct", "total"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits of shape (B, classes) and labels of shape (B,)."""
        self.correct += (logits.argmax(1) == labels).sum()
        self.total += len(labels)

    def compute(self) -> Tensor:
        """Return the share of correctly classified samples."""
        return self.correct.double() / self.total


class CrossEntropy(Metric):
    """Mean softmax cross-entropy over all samples, whatever the batches. NaN stays NaN.

    Example:
        >>> metric = CrossEntropy()
        >>> metric.update(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[0.0, 200.0]]), torch.tensor([1]))
        >>> round(float(metric.compute()), 4)  # log(2) * 2 / 3
        0.4621
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "count"):
            self.add_state(state, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits of shape (B, classes) and labels of shape (B,)."""
        self.total += cross_entropy(logits, labels, reduction="sum")
        self.count += len(labels)

    def compute(self) -> Tensor:
        """Return the mean, in float32 like every logged value."""
        return (self.total / self.count).float()


class Confidence(Metric):
    """Confidence of a classifier on the samples that it classifies correctly.

    The confidence of a sample is its largest softmax value; only correctly classified samples count.

    - ``confidence``: the mean over all of them;
    - ``confidence_std``: the standard deviation over all of them;
    - ``cdac``: the standard deviation over classes of the per-class mean (classes without a correct sample left out).

    NaN where no sample was classified correctly. Standard deviations divide by n.

    Args:
        num_classes: Number of classes.

    Example:
        >>> metric = Confidence(num_classes=2)
        >>> metric.update(torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0, 0]))
        >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
        {'confidence': 0.7499, 'confidence_std': 0.2499, 'cdac': 0.0}

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for state in ("total", "squares", "count"):
            self.add_state(state, torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits of shape (B, classes) and labels of shape (B,)."""
        confidence, predicted = logits.double().softmax(1).max(1)
        right = predicted == labels
        confidence, labels = confidence[right], labels[right]
        self.total.index_add_(0, labels, confidence)
        self.squares.index_add_(0, labels, confidence**2)
        self.count.index_add_(0, labels, torch.ones_like(confidence))

    def compute(self) -> dict[str, Tensor]:
        """Return the three numbers."""
        n = self.count.sum()
        mean = self.total.sum() / n
        variance = (self.squares.sum() / n - mean**2).clamp(min=0)
        per_class = (self.total / self.count)[self.count > 0]
        spread = per_class.std(correction=0) if len(per_class) else mean
        return {"confidence": mean, "confidence_std": variance.sqrt(), "cdac": spread}
