"""Import the training code with garbage collection paused, and without what nobody uses of torchmetrics."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_RUN = "lrbench_pl.runs.run"


def import_run() -> ModuleType:
    """Import :mod:`lrbench_pl.runs.run`, and with it Lightning, in a program of its own."""
    return _import_paused(_RUN)


def import_lightning() -> ModuleType:
    """Import Lightning in a program of its own."""
    return _import_paused("pytorch_lightning")


def _import_paused(name: str) -> ModuleType:
    """Import a module with garbage collection paused, and leave what it made alone afterwards.

    The collector would traverse hundreds of thousands of objects many times, and once more when the process ends, and
    none of them is garbage.
    """
    if name not in sys.modules:
        enabled = gc.isenabled()
        gc.disable()
        try:
            import_torchmetrics()
            importlib.import_module(name)
        finally:
            gc.freeze()
            if enabled:
                gc.enable()
        atexit.register(gc.freeze)
    return sys.modules[name]


def import_torchmetrics() -> None:
    """Import what Lightning and the workloads need of torchmetrics; the rest follows when it is first used.

    The package imports all its metrics, and with them torchvision's models, ``scipy.signal`` and, where it is
    installed, transformers: more than a second for every process, for metrics of images, sound and text.
    """
    if "torchmetrics" in sys.modules:
        return
    finder = _LazyPackages({"torchmetrics": _TORCHMETRICS, "torchmetrics.functional": {}})
    sys.meta_path.insert(0, finder)
    try:
        for name in ("utilities", "collections", "classification"):  # in another order they wait for each other
            importlib.import_module(f"torchmetrics.{name}")
    except Exception:  # a version whose modules need each other in another way
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]
    finally:
        sys.meta_path.remove(finder)


def _attribute(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(module), name)


# what Lightning and torchmetrics itself take from the package
_TORCHMETRICS: Mapping[str, Callable[[], Any]] = {
    "__version__": _attribute("torchmetrics.__about__", "__version__"),
    "Metric": _attribute("torchmetrics.metric", "Metric"),
    "MetricCollection": _attribute("torchmetrics.collections", "MetricCollection"),
    "_logger": lambda: logging.getLogger("torchmetrics"),
}


class _LazyPackage(ModuleType):
    """A package whose own code is executed when a name that it alone defines is first used."""

    _known: Mapping[str, Callable[[], Any]]
    _lock: threading.RLock
    _loading: bool

    def __getattr__(self, name: str) -> Any:
        if name in self._known:
            return self._known[name]()
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self._load()
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> Sequence[str]:
        self._load()
        return list(ModuleType.__dir__(self))

    def _load(self) -> None:
        with self._lock:
            if not self._loading:
                self._loading = True
                loader = self.__spec__.loader if self.__spec__ else None
                assert isinstance(loader, _LazyLoader)
                loader.own.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]


class _LazyLoader(Loader):
    """Make the package, and leave its code for later."""

    def __init__(self, own: Loader, known: Mapping[str, Callable[[], Any]]) -> None:
        self.own, self._known = own, known

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _LazyPackage(spec.name)
        module._known, module._lock, module._loading = self._known, threading.RLock(), False
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _LazyPackages(MetaPathFinder):
    """Find the named packages, with the values that are known without their code."""

    def __init__(self, packages: Mapping[str, Mapping[str, Callable[[], Any]]]) -> None:
        self._packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self._packages else None
        if spec is not None and spec.loader is not None:
            spec.loader = _LazyLoader(spec.loader, self._packages[fullname])
        return spec
