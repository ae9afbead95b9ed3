"""Networks. Any other ``nn.Module`` can be used as well: name it in ``model._target_``."""

from lrbench_pl.workloads.models.gpt import GPT
from lrbench_pl.workloads.models.resnet import cifar_resnet
from lrbench_pl.workloads.models.small import LocalResponseNorm, cnn3, lenet, mlp

__all__ = ["GPT", "LocalResponseNorm", "cifar_resnet", "cnn3", "lenet", "mlp"]
