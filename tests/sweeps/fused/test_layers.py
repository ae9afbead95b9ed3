"""The kernels of the stacked engine, interpreted on the CPU: each layer against torch's own, and a whole engine."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from lrbench_pl.sweeps.fused import stacked
from lrbench_pl.sweeps.fused.choice import make_engine
from lrbench_pl.workloads.models import LocalResponseNorm
from lrbench_pl.workloads.models.resnet import Block
from tests.sweeps.fused.serial import Case, drift, weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(scope="module")
def layers():
    """The layers; where there is no GPU, with kernels that Triton interprets, which it decides when it is imported."""
    from lrbench_pl.sweeps.fused import kernels, layers, operations

    if DEVICE.type == "cuda":
        yield layers
        return

    def is_triton(name):
        return name.split(".")[0] == "triton" and not name.startswith("triton._C")

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if is_triton(name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec = importlib.util.spec_from_file_location("interpreted_kernels", kernels.__file__)
        interpreted = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(interpreted)
        patch.setattr(operations, "kernels", interpreted)
        yield layers
    for name in [name for name in sys.modules if is_triton(name)]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32 without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def conv(*arguments, **options):
    return nn.Conv2d(*arguments, **options)


def close(found, expected):
    """Compare with what was computed in float64, relative to the largest value."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    assert float((found - expected).abs().max()) <= 3e-6 * max(1.0, float(expected.abs().max()))


NETS = {  # a network, and the number of layers with kernels
    "5x5, padded, with bias": (lambda: conv(3, 8, 5, padding=2), 1),
    "rectangular, strided": (lambda: nn.Sequential(conv(3, 18, 1), conv(18, 6, (3, 2), stride=(2, 1), bias=False)), 2),
    "many channels": (lambda: nn.Sequential(conv(3, 70, 3, stride=2, padding=1), conv(70, 20, 3, padding=1)), 2),
    "batch norm and ReLU": (
        lambda: nn.Sequential(conv(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU(), conv(8, 4, 1)), 3,
    ),
    "batch norm alone": (lambda: nn.Sequential(conv(3, 5, 3, bias=False), nn.BatchNorm2d(5, momentum=0.3)), 2),
    "response norm": (lambda: nn.Sequential(conv(3, 8, 3), LocalResponseNorm(3, 0.5), conv(8, 4, 1)), 3),
    "max pool": (lambda: nn.Sequential(conv(3, 8, 3), nn.MaxPool2d(3, 2, ceil_mode=True), conv(8, 4, 1)), 3),
    "max pool, padded": (lambda: nn.Sequential(conv(3, 8, 3), nn.MaxPool2d((2, 3), (2, 1), padding=1)), 2),
    "average pool": (lambda: nn.Sequential(conv(3, 8, 3), nn.AvgPool2d(3, 2, ceil_mode=True)), 2),
    "average pool, padded": (
        lambda: nn.Sequential(conv(3, 8, 3), nn.AvgPool2d((2, 3), (1, 2), 1, count_include_pad=False)), 2,
    ),
    "blocks": (
        lambda: nn.Sequential(conv(3, 4, 3), Block(4, 4, 1), Block(4, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "is_training"),
    [*((name, True) for name in NETS), ("batch norm and ReLU", False), ("batch norm alone", False), ("blocks", False)],
)
def test_outputs_gradients_and_statistics_are_torchs(layers, name, is_training):
    torch.manual_seed(3)
    make, count = NETS[name]
    models = [make().to(DEVICE).train(is_training) for _ in range(2)]
    for model in models:
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            nn.init.uniform_(tensor, 0.1, 0.6)
    x = torch.randn(3, 3, 9, 8, device=DEVICE).contiguous(memory_format=torch.channels_last)
    base = copy.deepcopy(models[0])
    assert layers.replace_layers(base) == count
    parameters = {
        name: torch.stack([dict(model.named_parameters())[name].detach() for model in models]).requires_grad_()
        for name, _ in base.named_parameters()
    }
    buffers = {
        name: torch.stack([dict(model.named_buffers())[name] for model in models]) for name, _ in base.named_buffers()
    }
    outputs = vmap(lambda own, state: functional_call(base, {**own, **state}, (x,)))(parameters, buffers)
    weight = torch.randn_like(outputs)
    found = torch.autograd.grad(outputs, list(parameters.values()), weight)
    for row, model in enumerate(models):
        model = model.cpu().double()
        expected = model(x.cpu().double())
        gradients = torch.autograd.grad(expected, list(model.parameters()), weight[row].cpu().double())
        close(outputs[row], expected)
        for own, gradient in zip(found, gradients, strict=True):
            close(own[row], gradient)
        for name, buffer in model.named_buffers():
            close(buffers[name][row], buffer)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_into_the_shared_memory_of_small_gpus(itemsize):
    operations = pytest.importorskip("lrbench_pl.sweeps.fused.operations")
    for channels, kernel in itertools.product((1, 3, 16, 20, 48, 64, 96, 128, 512), (1, 3, 5, 7)):
        for outputs in (1, 16, 50, 64, 100, 128, 512):
            tall, inner, columns = operations.convolution_tiles(channels * kernel, outputs, itemsize, 99 * 1024)
            assert (tall + columns) * inner * itemsize * 3 <= 99 * 1024
            assert min(tall, inner, columns) >= 16
            assert all(size & (size - 1) == 0 for size in (tall, inner, columns))


def test_each_network_has_inputs_of_its_own(layers):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 3, 7, 7, device=DEVICE)
    models = [conv(3, 4, 3).to(DEVICE) for _ in range(2)]
    base = copy.deepcopy(models[0])
    layers.replace_layers(base)
    wide = torch.zeros(2, 200, device=DEVICE)  # parameters are columns of a row, as in an engine
    stack = {"weight": wide[:, 8:116].view(2, 4, 3, 3, 3), "bias": wide[:, 130:134]}
    for row, model in enumerate(models):
        for name, tensor in model.state_dict().items():
            stack[name][row] = tensor
    found = vmap(lambda own, x: functional_call(base, own, (x,)))(stack, inputs)
    for row, model in enumerate(models):
        torch.testing.assert_close(found[row], model(inputs[row]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(2),
    ],
    ids=str,
)
def test_what_has_no_kernel_stays(layers, layer):
    before = type(layer)
    assert layers.replace_layers(nn.Sequential(layer)) == 0
    assert type(layer) is before


def test_a_layer_with_a_hook_stays(layers):
    layer = conv(3, 4, 3)
    layer.register_forward_hook(lambda *_: None)
    assert layers.replace_layers(layer) == 0


@pytest.mark.slow
def test_an_engine_trains_and_checks_as_a_serial_run(layers, monkeypatch):
    monkeypatch.setattr(stacked, "_has_kernels", lambda device: True)
    case = Case("small", jobs=((0, 0.01), (1, 0.005)), steps=3, batch=8, device=DEVICE.type)
    replicas, loaders, validation = case.replicas()
    engine = make_engine("stacked", replicas, loaders, precision="32-true", device=DEVICE)
    engine.advance(3)
    checked = engine.evaluate(validation)
    for job, replica in enumerate(replicas):
        engine.export(job)
        module, metrics, _ = case.serial(job)
        assert drift(weights(replica.module), weights(module)) < 1e-5
        assert checked[job] == pytest.approx(metrics, rel=1e-3)
