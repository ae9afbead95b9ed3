import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics import MaxMetric
from torchmetrics.classification import MulticlassAccuracy


class DigitsModule(pl.LightningModule):
    def __init__(self, optimizer, hidden: int) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.accuracy, self.best = MulticlassAccuracy(10, average="micro"), MaxMetric()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self.net(x), y)
        self.log("val/acc", self.accuracy, on_step=False, on_epoch=True)

    def configure_optimizers(self):
        optimizer: torch.optim.Optimizer = self.optimizer(params=self.parameters())
        return {"optimizer": optimizer}
