"""Import the training code with garbage collection paused."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from types import ModuleType

_RUN = "lrbench_pl.runs.run"


def import_run() -> ModuleType:
    """Import :mod:`lrbench_pl.runs.run`, and with it Lightning, in a program of its own.

    Garbage collection is off during the import and leaves the imported objects alone afterwards. It would traverse
    hundreds of thousands of them many times, and once more when the process ends, and none of them is garbage.
    """
    if _RUN not in sys.modules:
        enabled = gc.isenabled()
        gc.disable()
        try:
            importlib.import_module(_RUN)
        finally:
            gc.freeze()
            if enabled:
                gc.enable()
        atexit.register(gc.freeze)
    return sys.modules[_RUN]
