"""One thread per process: pytest-xdist runs two, and more threads than cores are many times slower."""

import fcntl
import gc
import os
import shutil
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job, which children would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # every process that a test starts would compile the package anew
    sys.dont_write_bytecode = False

import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime

from lrbench_pl.runs.imports import import_torchmetrics
from lrbench_pl.sweeps.composer import SweepComposer

import_torchmetrics()
torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Let each process begin with its slow tests, so that none is left when the others have nothing to do any more."""
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    share = -(-len(items) // count)  # as pytest-xdist divides them
    parts = [items[start : start + share] for start in range(0, len(items), share or 1)]
    items[:] = [
        item for part in parts for item in sorted(part, key=lambda item: item.get_closest_marker("slow") is None)
    ]


def pytest_collection_finish():
    """Collect garbage less often: each time all that the imports have made is searched, a sixth of the tests' time."""
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def environment_is_left_as_it_was():
    """A test that leaks an environment variable breaks another one far away."""
    before = dict(os.environ)
    yield
    # Lightning leaves these on purpose; PYTEST_CURRENT_TEST is pytest's own
    allowed = {
        "PL_GLOBAL_SEED",
        "PL_SEED_WORKERS",
        "PYTEST_CURRENT_TEST",
        "CUDA_DEVICE_ORDER",
        "WANDB_SERVICE",
        "KMP_DUPLICATE_LIB_OK",  # scikit-learn sets these when imported
        "KMP_INIT_AT_FORK",
        "TORCHINDUCTOR_CACHE_DIR",  # torch sets these when wandb looks for GPUs
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        "_RJEM_MALLOC_CONF",  # polars sets it when imported
        "RAY_CLIENT_MODE",  # Ray sets it when imported
    }
    leaked = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)} - allowed
    for key in leaked | {"PL_GLOBAL_SEED", "PL_SEED_WORKERS"}:
        os.environ.pop(key, None)
        if key in before:
            os.environ[key] = before[key]
    assert not leaked, f"the test changed the environment: {sorted(leaked)}"


@pytest.fixture(autouse=True)
def ctrl_c_is_heard_as_before():
    """Lightning ignores Ctrl-C after the first one, and whatever a later test starts would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def hydra_is_not_initialized():
    """A job of Hydra that is left behind would give its names to the trainings of a later test, or refuse its own."""
    forget_hydra()  # a doctest has no fixtures
    yield
    forget_hydra()


def forget_hydra():
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True, scope="session")
def files_are_merged_once_for_all_tests():
    """Let ``compose`` merge the files of a choice of groups once, as a sweep does, which tests compare with Hydra."""
    own, composers = hydra.compose, {}

    def compose(*arguments, **options):
        program = GlobalHydra.instance().hydra
        if type(program.config_loader) is ConfigLoaderImpl:
            key = (str(program.config_loader.get_search_path()), os.getcwd(), JobRuntime.instance().get("name"))
            composer = program.config_loader = composers.setdefault(key, SweepComposer(program.config_loader))
            if len(composer._bases) > 50:  # a megabyte each
                composer._bases.clear()
        return own(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", compose)
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Fill a folder once for all processes of pytest-xdist: ``made_once(name, fill)`` returns it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name, fill):
        folder, finished = root / name, root / f"{name}.finished"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                finished.touch()
        return folder

    return made
