"""The engines on a CUDA device: equal to trainings alone, captured in a graph, and never waited for."""

from __future__ import annotations

import gc
import logging
from functools import partial

import pytest
import torch
from torch.optim import Adam, AdamW, RMSprop

from lrbench_pl.sweeps.fused.choice import make_engine
from lrbench_pl.sweeps.fused.engine import CannotFuse, subset
from lrbench_pl.sweeps.fused.objective import Objective
from tests.sweeps.fused import serial
from tests.sweeps.fused.serial import Case, drift, weights

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)
CASES = {
    **serial.CASES,
    "resnet": Case("resnet", augmented=True),
    "adam": Case(optimizer=partial(Adam, lr=1.0, weight_decay=1e-2), jobs=((0, 0.005), (0, 0.01), (1, 0.002))),
    "adamw": Case(optimizer=partial(AdamW, lr=1.0), jobs=((0, 0.005), (0, 0.01), (1, 0.002))),
    "rmsprop": Case(optimizer=partial(RMSprop, lr=1.0), jobs=((0, 0.005), (0, 0.01), (1, 0.002))),
    "lenet bf16": Case("lenet", precision="bf16-mixed"),
    "resnet bf16": Case("resnet", precision="bf16-mixed", augmented=True),
}


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """Deterministic kernels, which a comparison bit by bit needs."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)
    gc.collect()
    torch.cuda.empty_cache()


def on_cuda(case, **changes):
    return Case(**{**vars(case), "device": "cuda", "datasets": {}, **changes})


def engine_of(case, name="captured"):
    replicas, loaders, validation = case.replicas()
    return make_engine(name, replicas, loaders, precision=case.precision, device=DEVICE), replicas, validation


def exported(engine, replicas, indices=None):
    indices = range(len(replicas)) if indices is None else indices
    for index in indices:
        engine.export(index)
    return [weights(replicas[index].module) for index in indices]


def take_two_steps(case):
    engine, _, _ = engine_of(case)
    engine.advance(2)
    assert not engine.nonfinite()


def free_memory():
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", CASES)
def test_captured_is_bitwise_the_serial_run(name):
    case = on_cuda(CASES[name])
    engine, replicas, validation = engine_of(case)
    engine.advance(case.steps)
    checked, losses = engine.evaluate(validation), engine.train_losses()
    for job, found in enumerate(exported(engine, replicas)):
        module, metrics, expected = case.serial(job)
        print(f"{name} job {job}: drift {drift(found, weights(module)):.2e}")
        assert torch.equal(found, weights(module))
        assert losses[job].tolist() == expected
        assert checked[job] == pytest.approx(metrics, rel=1e-6)


def test_stacked_drifts_little_from_the_serial_run():
    case = on_cuda(CASES["mlp"])
    engine, replicas, validation = engine_of(case, "stacked")
    engine.advance(case.steps)
    checked = engine.evaluate(validation)
    for job, found in enumerate(exported(engine, replicas)):
        module, metrics, _ = case.serial(job)
        assert drift(found, weights(module)) < 1e-5
        assert checked[job] == pytest.approx(metrics, abs=1e-4)


@pytest.mark.parametrize("name", ["lenet", "cnn3", "resnet"])
def test_stacked_images_drift_little_from_the_serial_run(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = on_cuda(CASES[name], jobs=((0, 0.01), (0, 0.005), (1, 0.01)))
    engine, replicas, validation = engine_of(case, "stacked")
    engine.advance(case.steps)
    checked = engine.evaluate(validation)
    for job, found in enumerate(exported(engine, replicas)):
        module, metrics, _ = case.serial(job)
        print(f"{name} job {job}: drift {drift(found, weights(module)):.2e}")
        assert drift(found, weights(module)) < 1e-4
        assert checked[job] == pytest.approx(metrics, abs=0.02)


@pytest.mark.parametrize("name", ["lenet bf16", "resnet bf16"])
def test_stacked_images_in_bfloat16_drift_as_far_as_it_resolves(name):
    case = on_cuda(CASES[name], jobs=((0, 0.01), (1, 0.005)))
    engine, replicas, _ = engine_of(case, "stacked")
    engine.advance(case.steps)
    again, same, _ = engine_of(case, "stacked")
    again.advance(case.steps)
    for job, (found, repeated) in enumerate(zip(exported(engine, replicas), exported(again, same), strict=True)):
        module, _, _ = case.serial(job)
        print(f"{name} job {job}: drift {drift(found, weights(module)):.2e}")
        assert drift(found, weights(module)) < 0.05
        assert torch.equal(found, repeated)


@pytest.mark.parametrize("engine_name", ["captured", "stacked"])
def test_the_host_waits_for_nothing_between_checks(engine_name):
    case = on_cuda(CASES["mlp"], steps=400)
    engine, _, _ = engine_of(case, engine_name)
    engine.advance(5)  # captures
    engine.nonfinite()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.advance(300)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine.step == 305


@pytest.mark.parametrize("name", ["mlp", "resnet", "dropout", "adam", "rmsprop"])
def test_leaving_and_moving_together_change_nothing_for_the_others(name):
    jobs = tuple((seed, peak) for seed in (0, 1) for peak in (0.01, 0.005, 0.002))
    case = on_cuda(CASES[name], jobs=jobs)
    undisturbed, replicas, _ = engine_of(case)
    undisturbed.advance(4)
    at_four = exported(undisturbed, replicas)
    undisturbed.advance(6)
    expected = exported(undisturbed, replicas)
    engine, replicas, _ = engine_of(case)
    engine.advance(4)
    engine.leave([1])  # masked
    engine.advance(2)
    engine.leave([3])  # two of six: moved together, captured again
    engine.advance(4)
    found = exported(engine, replicas)
    assert list(engine.alive) == [0, 2, 4, 5]
    for job in (0, 2, 4, 5):
        assert torch.equal(found[job], expected[job])
    assert torch.equal(found[1], at_four[1])
    assert not torch.equal(found[3], at_four[3])


@pytest.mark.parametrize(("engine_name", "name"), [("captured", "mlp"), ("captured", "resnet"), ("stacked", "mlp")])
def test_a_nan_never_touches_another_job(engine_name, name):
    case = on_cuda(CASES[name], jobs=((0, 0.01), (0, 1e25), (0, 0.005)), precision="32-true")
    engine, replicas, _ = engine_of(case, engine_name)
    engine.advance(10)
    assert set(engine.nonfinite()) == {1}
    found = exported(engine, replicas)
    calm = on_cuda(case, jobs=((0, 0.01), (0, 0.007), (0, 0.005)))
    engine, replicas, _ = engine_of(calm, engine_name)
    engine.advance(10)
    expected = exported(engine, replicas)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("name", ["resnet", "dropout", "adamw", "rmsprop"])
def test_a_state_continues_bit_by_bit_whole_or_split(name):
    case = on_cuda(CASES[name])
    engine, replicas, _ = engine_of(case)
    engine.advance(10)
    expected = exported(engine, replicas)
    engine, _, _ = engine_of(case)
    engine.advance(4)
    state = engine.state_dict()
    whole, replicas, _ = engine_of(case)
    whole.load_state_dict(state)
    whole.advance(6)
    for found, value in zip(exported(whole, replicas), expected, strict=True):
        assert torch.equal(found, value)
    replicas, loaders, _ = case.replicas()
    half = make_engine("captured", replicas[1:], loaders, precision=case.precision, device=DEVICE)
    half.load_state_dict(subset(state, range(1, len(replicas))))
    half.advance(6)
    for found, value in zip(exported(half, replicas[1:]), expected[1:], strict=True):
        assert torch.equal(found, value)


def test_checks_of_a_graph_are_those_of_the_first_time():
    jobs = tuple((seed, peak) for seed in (0, 1) for peak in (0.01, 0.005, 0.002))
    engine, _, validation = engine_of(on_cuda(CASES["resnet"], jobs=jobs))
    engine.advance(3)
    first = engine.evaluate(validation)
    assert engine.evaluate(validation) == first  # captures
    assert engine.evaluate(validation) == first
    engine.leave([1])
    assert engine.evaluate(validation) == {job: own for job, own in first.items() if job != 1}
    engine.advance(3)
    replayed = engine.evaluate(validation)
    engine._evaluations.clear()
    assert engine.evaluate(validation) == replayed != first
    engine.leave([2])  # two of six: moved together
    moved = {job: own for job, own in replayed.items() if job != 2}
    assert [engine.evaluate(validation) for _ in range(3)] == [moved] * 3


def test_the_stacked_engine_refuses_what_vmap_cannot_in_one_line():
    with pytest.raises(CannotFuse) as refusal:
        engine_of(on_cuda(Case("branching")), "stacked")
    assert "vmap cannot run the model" in str(refusal.value)
    assert "hydra.launcher.engine=captured" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_after_running_out_of_memory_a_smaller_group_trains():
    case = on_cuda(CASES["lenet"], jobs=tuple((0, 0.01 + 0.0001 * job) for job in range(64)), batch=128)
    small = on_cuda(case, jobs=case.jobs[:4])
    take_two_steps(case)  # what the libraries keep for each stream is there from now on
    free_memory()
    torch.cuda.reset_peak_memory_stats()
    take_two_steps(small)
    room = torch.cuda.max_memory_reserved() + 8 * 2**20
    free_memory()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            take_two_steps(case)
        free_memory()
        take_two_steps(small)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_capture_that_runs_out_of_memory_leaves_nothing_behind(monkeypatch):
    case = on_cuda(CASES["lenet"])
    take_two_steps(case)
    free_memory()
    before = torch.cuda.memory_reserved()
    loss_of = Objective.loss

    def loss(self, output, target):
        if torch.cuda.is_current_stream_capturing():
            held = torch.empty(2**20, device="cuda")
            raise torch.cuda.OutOfMemoryError(f"no room beside {held.shape}")
        return loss_of(self, output, target)

    with monkeypatch.context() as patched:
        patched.setattr(Objective, "loss", loss)
        with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
            take_two_steps(case)
    free_memory()
    assert torch.cuda.memory_reserved() <= before
    take_two_steps(case)
