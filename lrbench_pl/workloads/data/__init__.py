"""Data as whole tensors: sources, loaders and the module that joins them."""

from lrbench_pl.workloads.data.folder import ImageFolderDataModule
from lrbench_pl.workloads.data.loaders import Augment, EvalLoader, Normalise, TrainLoader
from lrbench_pl.workloads.data.module import TensorDataModule
from lrbench_pl.workloads.data.sources import DataError, Splits, digits, synthetic, torchvision_set

__all__ = [
    "Augment",
    "DataError",
    "EvalLoader",
    "ImageFolderDataModule",
    "Normalise",
    "Splits",
    "TensorDataModule",
    "TrainLoader",
    "digits",
    "synthetic",
    "torchvision_set",
]
