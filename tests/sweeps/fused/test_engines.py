"""The engines on the CPU, against trainings alone. The captured one computes there without streams and graph."""

from __future__ import annotations

import io
import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adagrad, Adam, AdamW, RMSprop

from lrbench_pl.sweeps.fused import choice
from lrbench_pl.sweeps.fused.choice import choose_engine, make_engine
from lrbench_pl.sweeps.fused.engine import CannotFuse, Replica, subset
from lrbench_pl.workloads.classifier import Classifier
from tests.sweeps.fused import serial
from tests.sweeps.fused.serial import NETS, PLAIN_SGD, Case, drift, weights

CPU = torch.device("cpu")
SMALL = ((0, 0.005), (0, 0.01), (1, 0.002))
RESNET = pytest.param("resnet", marks=pytest.mark.slow)
CASES = {
    **serial.CASES,
    "resnet": Case("resnet", jobs=((0, 0.01), (0, 0.02), (1, 0.01))),
    "resnet augmented": Case("resnet", augmented=True, jobs=((0, 0.01), (1, 0.01))),
    "dampening": Case(optimizer=partial(PLAIN_SGD, momentum=0.9, dampening=0.1)),
    "adam": Case(
        optimizer=partial(Adam, lr=1.0), settings=[{"weight_decay": 1e-2}, {"betas": (0.8, 0.99)}, {}], jobs=SMALL
    ),
    "adamw": Case(optimizer=partial(AdamW, lr=1.0), jobs=SMALL),
    "amsgrad": Case(optimizer=partial(AdamW, lr=1.0, amsgrad=True), jobs=SMALL),
    "rmsprop": Case(optimizer=partial(RMSprop, lr=1.0), jobs=SMALL),
    "adagrad": Case(optimizer=partial(Adagrad, lr=1.0), jobs=SMALL),
    "mlp bf16": Case(precision="bf16-mixed"),
    "resnet bf16": Case("resnet", precision="bf16-mixed", jobs=((0, 0.01), (1, 0.02))),
}
ENGINES = ["stacked", "captured"]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def alone():
    """The serial trainings of a case, each trained once."""
    trained = {}

    def of(name):
        if name not in trained:
            trained[name] = [CASES[name].serial(job) for job in range(len(CASES[name].jobs))]
        return trained[name]

    return of


def engine_of(case, name):
    replicas, loaders, validation = case.replicas()
    return make_engine(name, replicas, loaders, precision=case.precision, device=CPU), replicas, validation


def exported(engine, replicas):
    for index in range(len(replicas)):
        engine.export(index)
    return [weights(replica.module) for replica in replicas]


@pytest.mark.parametrize("name", CASES)
def test_captured_equals_the_serial_run_bit_by_bit(name, alone):
    case = CASES[name]
    engine, replicas, validation = engine_of(case, "captured")
    engine.advance(case.steps)
    checked, losses = engine.evaluate(validation), engine.train_losses()
    for job, found in enumerate(exported(engine, replicas)):
        module, metrics, expected = alone(name)[job]
        assert torch.equal(found, weights(module))
        assert losses[job].tolist() == expected
        assert checked[job] == metrics


@pytest.mark.parametrize("name", CASES)
def test_stacked_drifts_little_from_the_serial_run(name, alone):
    case = CASES[name]
    engine, replicas, validation = engine_of(case, "stacked")
    engine.advance(case.steps)
    checked, losses = engine.evaluate(validation), engine.train_losses()
    bound = 1e-5 if case.precision == "32-true" else 2e-2  # bf16 rounds products to 8 bits
    if case.augmented:  # on the even areas of padded images, some ReLU is on its kink
        bound = 1e-4
    for job, found in enumerate(exported(engine, replicas)):
        module, metrics, expected = alone(name)[job]
        assert drift(found, weights(module)) < bound
        if case.precision == "32-true":
            assert losses[job].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)
            assert checked[job] == pytest.approx(metrics, rel=1e-3)


def test_rates_and_batches_are_exactly_those_of_the_serial_run():
    case = Case("resnet", augmented=True, steps=150, jobs=((0, 0.05), (1, 0.1), (0, 0.3)))
    engine, _, _ = engine_of(case, "captured")
    seen = []
    engine._compute_gradients = lambda batches: seen.append(
        ([batch for batch in batches.values()], engine._coefficients.index_select(0, engine._place).clone())
    )
    engine.advance(150)
    loaders = [case.data(seed).train_dataloader() for seed in (0, 1)]
    rates = np.array([case.rates(peak) for _, peak in case.jobs], dtype=np.float32)
    for step, (batches, coefficients) in enumerate(seen):
        for loader, (inputs, labels) in zip(loaders, batches, strict=True):
            expected_inputs, expected_labels = next(loader)
            assert torch.equal(inputs, expected_inputs)
            assert torch.equal(labels, expected_labels)
        assert (-coefficients[0, 0, 0, :, 0]).tolist() == rates[:, step].tolist()


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("name", ["mlp", RESNET, "dropout", "adam", "rmsprop"])
def test_those_that_leave_keep_their_weights_and_change_nothing_for_the_others(engine_name, name):
    jobs = tuple((seed, peak) for seed in (0, 1) for peak in (0.01, 0.005, 0.002))
    case = Case(**{**vars(CASES[name]), "jobs": jobs, "settings": (), "datasets": {}})
    undisturbed, replicas, _ = engine_of(case, engine_name)
    undisturbed.advance(4)
    at_four = exported(undisturbed, replicas)
    undisturbed.advance(6)
    expected = exported(undisturbed, replicas)

    engine, replicas, validation = engine_of(case, engine_name)
    engine.advance(4)
    engine.leave([1])
    assert len(engine._rows) == 6  # masked
    engine.advance(2)
    engine.leave([3])
    assert len(engine._rows) == 4  # a third has left
    engine.advance(4)
    found = exported(engine, replicas)
    assert list(engine.alive) == [0, 2, 4, 5]
    for job in engine.alive:
        assert drift(found[job], expected[job]) < (1e-6 if engine_name == "stacked" else 1e-30)
    assert torch.equal(found[1], at_four[1])
    assert engine.evaluate(validation).keys() == engine.train_losses().keys() == {0, 2, 4, 5}
    with pytest.raises(ValueError, match="replica 1 does not train"):
        engine.leave([1])
    engine.leave([0, 2, 4, 5])
    assert engine.evaluate(validation) == {}
    assert torch.equal(exported(engine, replicas)[5], found[5])


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "lenet", RESNET, "dropout", "adamw"])
def test_a_nan_never_touches_another_job(engine_name, name):
    case = Case(**{**vars(CASES[name]), "jobs": ((0, 0.01), (0, 1e30), (0, 0.005)), "settings": (), "datasets": {}})
    engine, replicas, validation = engine_of(case, engine_name)
    engine.advance(5)
    engine.advance(5)
    losses = case.serial(1)[2]
    first = next(step for step, loss in enumerate(losses, 1) if not np.isfinite(loss))
    assert engine.nonfinite() == {1: first}
    found, checked = exported(engine, replicas), engine.evaluate(validation)
    calm = Case(**{**vars(case), "jobs": ((0, 0.01), (0, 0.007), (0, 0.005)), "datasets": {}})
    engine, replicas, validation = engine_of(calm, engine_name)
    engine.advance(10)
    expected = exported(engine, replicas)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    assert checked[2] == engine.evaluate(validation)[2]


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("name", [RESNET, "dropout", "adamw", "rmsprop", "settings"])
def test_a_state_continues_bit_by_bit_whole_or_in_part(engine_name, name):
    case = CASES[name]
    engine, replicas, _ = engine_of(case, engine_name)
    engine.advance(10)
    expected = exported(engine, replicas)

    engine, _, _ = engine_of(case, engine_name)
    engine.advance(4)
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    whole, replicas, _ = engine_of(case, engine_name)
    whole.load_state_dict(state)
    assert whole.step == 4
    whole.advance(6)
    for found, value in zip(exported(whole, replicas), expected, strict=True):
        assert torch.equal(found, value)

    replicas, loaders, _ = case.replicas()
    part = make_engine(engine_name, replicas[1:], loaders, precision=case.precision, device=CPU)
    part.load_state_dict(subset(state, range(1, len(replicas))))
    part.advance(6)
    for found, value in zip(exported(part, replicas[1:]), expected[1:], strict=True):
        assert drift(found, value) < (1e-6 if engine_name == "stacked" else 1e-30)


@pytest.mark.parametrize("engine_name", ENGINES)
def test_a_state_knows_who_left(engine_name):
    case = CASES["mlp"]
    engine, replicas, _ = engine_of(case, engine_name)
    engine.advance(3)
    engine.leave([0])
    state = engine.state_dict()
    expected = exported(engine, replicas)[0]
    again, replicas, _ = engine_of(case, engine_name)
    again.load_state_dict(state)
    again.advance(2)
    assert list(again.alive) == [1, 2, 3]
    assert torch.equal(exported(again, replicas)[0], expected)
    other, _, _ = engine_of(case, engine_name)
    other.advance(1)
    other.leave([1, 2])
    with pytest.raises(ValueError, match="load it into an engine as it was built"):
        other.load_state_dict(state)


def test_dropout_has_random_numbers_of_its_own():
    case = CASES["dropout"]
    few = Case(**{**vars(case), "jobs": case.jobs[:2], "datasets": {}})
    for name in ENGINES:
        engine, replicas, _ = engine_of(case, name)
        engine.advance(10)
        beside, replicas_beside, _ = engine_of(few, name)
        before = torch.get_rng_state()
        beside.advance(10)
        assert torch.equal(before, torch.get_rng_state())
        assert drift(exported(engine, replicas)[1], exported(beside, replicas_beside)[1]) < 1e-6
    modules = [case.module(0)[0] for _ in range(2)]
    replicas = [Replica(module, [0.0] * 10, 0, seed) for seed, module in enumerate(modules)]
    for name in ENGINES:  # equal weights, one batch: only the masks differ
        loaders = [case.data(0).train_dataloader()]
        engine = make_engine(name, replicas, loaders, precision="32-true", device=CPU)
        engine.advance(3)
        first, second = engine.train_losses().values()
        assert not torch.isclose(first, second).any()


def test_the_budget_ends():
    engine, _, _ = engine_of(CASES["mlp"], "captured")
    with pytest.raises(ValueError, match="the rates of 10 steps are known, got step 11"):
        engine.advance(11)


class Unused(nn.Module):
    """A network with a parameter that takes no part."""

    def __init__(self):
        super().__init__()
        self.net, self.extra = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.net(x)


class Branching(nn.Module):
    """A network whose path depends on its values."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        out = self.net(x)
        return out * 2 if out.sum() > 0 else out


class Noisy(nn.Module):
    """A network that draws random numbers outside nn.Dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x) + torch.randn(10)


class OwnSteps(Classifier):
    """A module of the user's own."""


def refused(engine="stacked", models=None, precision="32-true", optimizers=None, kind=Classifier, groups=None):
    models = models or [NETS["mlp"][0](10, (1, 8, 8)) for _ in range(2)]
    optimizers = optimizers or [PLAIN_SGD] * len(models)
    groups = groups or [()] * len(models)
    made = zip(models, optimizers, groups, strict=True)
    modules = [kind(model, optimizer, 10, own) for model, optimizer, own in made]
    replicas = [Replica(module, [0.1] * 5, 0, 0) for module in modules]
    loaders = [CASES["mlp"].data(0).train_dataloader()]
    with pytest.raises(CannotFuse) as refusal:
        make_engine(engine, replicas, loaders, precision=precision, device=CPU)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_what_cannot_be_fused_is_refused_in_one_line():
    assert "one of stacked, captured, got 'fast'" in refused("fast")
    assert "32-true or bf16-mixed to be fused, got 16-mixed" in refused(precision="16-mixed")
    assert "OwnSteps may define" in refused(kind=OwnSteps)
    assert "parameter extra takes no part" in refused("captured", [Unused(), Unused()])
    assert "vmap cannot run the model" in refused(models=[Branching(), Branching()])
    assert "elsewhere than in nn.Dropout" in refused(models=[Noisy(), Noisy()])
    wide = NETS["mlp"][0](10, (1, 8, 8), [32])
    assert "of several shapes" in refused(models=[NETS["mlp"][0](10, (1, 8, 8)), wide])
    assert "of several classes: Adam, SGD" in refused(optimizers=[PLAIN_SGD, partial(Adam, lr=1.0)])
    nesterov = partial(PLAIN_SGD, momentum=0.9, nesterov=True)
    assert "differ in nesterov of SGD" in refused(optimizers=[partial(PLAIN_SGD, momentum=0.9), nesterov])
    biases = [{"params": "*.bias", "lr_scale": 2.0}]
    assert "parameter groups of several shapes" in refused(groups=[(), biases])
    assert "parameters in float32" in refused(models=[NETS["mlp"][0](10, (1, 8, 8)).double() for _ in range(2)])


def test_a_trial_chooses_engine_and_group_size(monkeypatch):
    replicas, loaders, _ = Case(jobs=tuple((0, 0.01) for _ in range(20)), steps=40).replicas()

    def choose(rates, **options):
        def rate(name, replicas, loaders, precision, device, size):
            found = rates[name, size]
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(choice, "_rate", rate)
        return choose_engine(replicas, loaders, precision="32-true", **{"device": CPU, **options})

    grows = {("stacked", 8): 100.0, ("stacked", 16): 190.0, ("stacked", 20): 230.0, ("captured", 1): 50.0}
    assert choose(grows) == ("stacked", 20)
    assert choose({**grows, ("stacked", 20): 195.0}) == ("stacked", 10)  # two equal groups
    assert choose(grows, max_group=8) == ("stacked", 7)
    with pytest.raises(CannotFuse, match=r"such networks train no faster stacked than one by one"):
        choose({**grows, ("captured", 1): 300.0})
    with pytest.raises(CannotFuse, match=r"^no way$"):
        choose({("stacked", 8): CannotFuse("no way")})
    cuda = torch.device("cuda")
    full = torch.cuda.OutOfMemoryError("full")
    both = {("stacked", 8): 100.0, ("stacked", 16): 90.0, ("captured", 8): 300.0, ("captured", 16): full}
    assert choose(both, device=cuda) == ("captured", 7)
    with pytest.raises(CannotFuse, match="captured: b; stacked: a"):
        choose({("stacked", 8): CannotFuse("a"), ("captured", 8): CannotFuse("b")}, device=cuda)
    monkeypatch.setattr(choice, "uses_kernels", lambda *_: True)
    assert len(replicas) * 40 < 60 * 300  # shorter than what compiling its kernels is worth: stacked is not even tried
    assert choose({("captured", 8): 300.0, ("captured", 16): full}, device=cuda) == ("captured", 7)
    slow = {("captured", 8): 10.0, ("captured", 16): full, ("stacked", 8): 11.0, ("stacked", 16): 11.5}
    assert choose(slow, device=cuda) == ("stacked", 7)


def test_the_trial_leaves_modules_and_loaders_alone():
    replicas, loaders, _ = Case(jobs=((0, 0.01), (1, 0.02)), steps=40).replicas()
    before = [weights(replica.module) for replica in replicas]
    for name in ENGINES:
        assert choice._rate(name, replicas, loaders, "32-true", CPU, 2) > 0
    assert [loader.position for loader in loaders] == [0, 0]
    for replica, value in zip(replicas, before, strict=True):
        assert torch.equal(weights(replica.module), value)
