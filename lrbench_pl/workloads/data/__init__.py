"""Data modules, their loaders and the sources of images."""

from lrbench_pl.workloads.data.folder import ImageFolderDataModule
from lrbench_pl.workloads.data.loaders import Augment, EvalLoader, Normalise, TrainLoader
from lrbench_pl.workloads.data.module import TensorDataModule
from lrbench_pl.workloads.data.sources import DataError, Splits, digits, synthetic, torchvision_set
from lrbench_pl.workloads.data.table import TableDataModule
from lrbench_pl.workloads.data.text import TextDataModule

__all__ = [
    "Augment",
    "DataError",
    "EvalLoader",
    "ImageFolderDataModule",
    "Normalise",
    "Splits",
    "TableDataModule",
    "TensorDataModule",
    "TextDataModule",
    "TrainLoader",
    "digits",
    "synthetic",
    "torchvision_set",
]
