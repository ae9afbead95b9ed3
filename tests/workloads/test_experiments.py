"""The paper's workloads as their configuration composes them, and the data sets as conf names them."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from lrbench_pl.policies import InverseTime, MultiStep, Step
from lrbench_pl.runs.build import build
from lrbench_pl.runs.config import compose, conf_dir


@pytest.mark.parametrize(
    ("name", "batch_size", "max_steps", "weight_decay", "policy"),
    [
        ("mnist_lenet", 64, 10_000, 0.0005, InverseTime(init_lr=0.01, gamma=1e-4, power=0.75)),
        ("cifar10_cnn3", 100, 70_000, 0.004, MultiStep(init_lr=0.001, gamma=0.1, milestones=(60_000, 65_000))),
        ("cifar10_resnet32", 128, 64_000, 0.0001, MultiStep(init_lr=0.1, gamma=0.1, milestones=(32_000, 48_000))),
        ("imagenet_resnet18", 256, 450_000, 0.0001, Step(init_lr=0.1, gamma=0.1, step_size=150_300)),
    ],
)
def test_an_experiment_is_the_papers(name, batch_size, max_steps, weight_decay, policy):
    cfg = compose([f"experiment={name}", "trainer=cpu", "logger=none"])
    assert (cfg.batch_size, cfg.max_steps) == (batch_size, max_steps)
    parts = build(cfg)
    assert parts.verifier.policy == policy
    first = parts.module.configure_optimizers().param_groups[0]
    assert (first["momentum"], first["weight_decay"]) == (0.9, weight_decay)
    assert parts.data.batch_size == batch_size
    assert parts.data.num_classes == cfg.model.num_classes


def test_cnn3_is_under_caffes_multipliers():
    module = build(compose(["experiment=cifar10_cnn3", "trainer=cpu", "logger=none"])).module
    names = {parameter: name for name, parameter in module.model.named_parameters()}
    found = {
        names[parameter]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in module.configure_optimizers().param_groups
        for parameter in group["params"]
    }
    assert found == {
        "conv1.weight": (1.0, 0.004),
        "conv1.bias": (2.0, 0.004),
        "conv2.weight": (1.0, 0.004),
        "conv2.bias": (2.0, 0.004),
        "conv3.weight": (1.0, 0.004),
        "conv3.bias": (1.0, 0.004),
        "ip1.weight": (1.0, 1.0),
        "ip1.bias": (2.0, 0.0),
    }


def test_cnn3_sees_pixels_in_0_to_255_and_no_augmentation():
    data = build(compose(["experiment=cifar10_cnn3", "trainer=cpu", "logger=none"])).data
    assert data.mean == "image"
    assert data.std == pytest.approx(1 / 255)
    assert not data.augment.is_on


FILES = ("text", "table", "table_regression")  # sets that need a file of the user's
IMAGES = [path for path in sorted((conf_dir() / "dataset").glob("*.yaml")) if path.stem not in FILES]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_every_data_set_can_be_made_and_every_net_fits_it(path: Path):
    cfg = compose([f"dataset={path.stem}", f"model={'resnet18' if path.stem == 'image_folder' else 'resnet20'}"])
    data, model = instantiate(cfg.dataset), instantiate(cfg.model).eval()
    assert data.check_on == "validation"
    if data.input_shape[0] == 3:  # torchvision's nets take colour
        assert model(torch.zeros(1, *data.input_shape)).shape == (1, data.num_classes)
