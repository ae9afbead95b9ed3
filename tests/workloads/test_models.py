"""The nets against their papers."""

import math

import numpy as np
import pytest
import torch
import torchvision
from hydra.utils import instantiate
from torch import nn

from lrbench_pl.runs.config import compose
from lrbench_pl.workloads.models import LocalResponseNorm, cifar_resnet, cnn3, lenet, mlp
from lrbench_pl.workloads.models.resnet import Block

CIFAR = (3, 32, 32)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_residual_nets_have_the_papers_parameters(model, millions):
    net = instantiate(compose(["dataset=cifar10", f"model={model}"]).model)
    digits = 1 if millions > 1 else 2
    assert round(count(net) / 1e6, digits) == millions
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == int(model.removeprefix("resnet"))


@pytest.mark.parametrize(("model", "millions"), [("resnet18", 11.7), ("resnet50", 25.6)])
def test_torchvisions_nets_come_by_name(model, millions):
    net = instantiate(compose(["dataset=image_folder", f"model={model}"]).model)
    assert isinstance(net, torchvision.models.ResNet)
    assert round(count(net) / 1e6, 1) == millions


def test_a_residual_net_halves_the_image_twice():
    net = cifar_resnet(20, 10, CIFAR)
    shapes = []
    for block in net:
        if isinstance(block, Block):
            block.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    assert net(torch.zeros(2, *CIFAR)).shape == (2, 10)
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_option_a_subsamples_and_adds_zero_channels():
    block = Block(2, 4, stride=2).eval()
    for norm in (block.norm1, block.norm2):
        nn.init.zeros_(norm.weight)  # the convolutions give nothing: what is left is the shortcut
    x = torch.rand(1, 2, 4, 4)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


@pytest.mark.parametrize("depth", [18, 2, 0, 21])
def test_a_depth_that_does_not_exist(depth):
    with pytest.raises(ValueError, match=f"depth must be 6 n \\+ 2 with n of at least 1, got {depth}"):
        cifar_resnet(depth, 10, CIFAR)


@pytest.mark.parametrize(("net", "shape", "least"), [(lenet, (1, 15, 28), 16), (cnn3, (3, 7, 32), 8)])
def test_images_that_are_too_small(net, shape, least):
    with pytest.raises(ValueError, match=f"at least {least} x {least} pixels, got {shape[1]} x {shape[2]}"):
        net(10, shape)


@pytest.mark.parametrize(
    ("net", "shape"), [(lenet, (1, 16, 16)), (lenet, (3, 33, 28)), (cnn3, (1, 8, 8)), (cnn3, (3, 33, 40)), (mlp, CIFAR)]
)
def test_other_sizes_and_classes_fit(net, shape):
    assert net(7, shape)(torch.zeros(2, *shape)).shape == (2, 7)


def test_lenet_has_caffes_layers_and_filler():
    net = lenet(10, (1, 28, 28))
    assert [tuple(p.shape) for p in net.parameters()] == [
        (20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,),
    ]  # fmt: skip
    for layer, inputs in ((net[0], 25), (net[2], 500), (net[5], 800), (net[7], 500)):
        bound = math.sqrt(3 / inputs)
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_cnn3_has_caffes_layers_and_filler():
    net = cnn3(10, CIFAR)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if p.ndim > 1}
    assert shapes == {
        "conv1.weight": (32, 3, 5, 5),
        "conv2.weight": (32, 32, 5, 5),
        "conv3.weight": (64, 32, 5, 5),
        "ip1.weight": (10, 1024),
    }
    deviations = {name: p.std().item() for name, p in net.named_parameters() if p.ndim > 1}
    expected = {"conv1.weight": 1e-4, "conv2.weight": 0.01, "conv3.weight": 0.01, "ip1.weight": 0.01}
    assert deviations == pytest.approx(expected, rel=0.1)
    assert not any(p.any() for p in net.parameters() if p.ndim == 1)


def test_normalisation_within_a_channel_is_caffes():
    x = torch.randn(2, 3, 5, 6) * 100
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.empty(x.shape)
    for row in range(5):
        for column in range(6):
            window = padded[:, :, row : row + 3, column : column + 3]
            scale = 1 + 5e-5 / 9 * (window**2).sum((2, 3))
            expected[:, :, row, column] = x[:, :, row, column].numpy() / scale**0.75
    np.testing.assert_allclose(LocalResponseNorm(size=3, alpha=5e-5)(x), expected, rtol=1e-5)


def test_average_pooling_divides_as_caffe_does_at_the_edge():
    pool = cnn3(10, CIFAR).pool2
    x = torch.ones(1, 1, 16, 16)
    # Caffe counts the cells inside the image: the last window of 16 is two wide
    assert torch.equal(pool(x), torch.ones(1, 1, 8, 8))
