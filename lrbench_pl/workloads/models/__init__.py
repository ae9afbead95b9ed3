"""The nets of the paper's workloads. Any other ``nn.Module`` is as good: name it in ``model._target_``."""

from lrbench_pl.workloads.models.resnet import cifar_resnet
from lrbench_pl.workloads.models.small import LocalResponseNorm, cnn3, lenet, mlp

__all__ = ["LocalResponseNorm", "cifar_resnet", "cnn3", "lenet", "mlp"]
