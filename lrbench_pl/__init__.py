"""LRBench for PyTorch Lightning: verify, rank and find learning-rate policies.

The public names are imported when they are first used, so that ``import lrbench_pl`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrbench_pl import policies
    from lrbench_pl.analysis.curves import curves
    from lrbench_pl.analysis.load import load_runs
    from lrbench_pl.analysis.ranking import rank
    from lrbench_pl.analysis.report import report, write_report
    from lrbench_pl.callbacks.composer import LRPolicyComposer
    from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
    from lrbench_pl.notebook import sweep
    from lrbench_pl.rates import LRPolicyError
    from lrbench_pl.runs.projects import policy_callback, write_result
    from lrbench_pl.runs.result import RunResult
    from lrbench_pl.scheduler import LRPolicyScheduler
    from lrbench_pl.verdict import TargetCheck, Verdict

    __version__: str

__all__ = [
    "LRPolicyCallback",
    "LRPolicyComposer",
    "LRPolicyError",
    "LRPolicyScheduler",
    "RunResult",
    "TargetCheck",
    "Verdict",
    "__version__",
    "curves",
    "load_runs",
    "policies",
    "policy_callback",
    "rank",
    "report",
    "sweep",
    "write_report",
    "write_result",
]

_HOMES = {
    "LRPolicyCallback": "callbacks.lr_policy",
    "LRPolicyComposer": "callbacks.composer",
    "LRPolicyError": "rates",
    "LRPolicyScheduler": "scheduler",
    "RunResult": "runs.result",
    "TargetCheck": "verdict",
    "Verdict": "verdict",
    "curves": "analysis.curves",
    "load_runs": "analysis.load",
    "policy_callback": "runs.projects",
    "rank": "analysis.ranking",
    "report": "analysis.report",
    "sweep": "notebook",
    "write_report": "analysis.report",
    "write_result": "runs.projects",
}


def __getattr__(name: str) -> Any:
    if name == "policies":
        return importlib.import_module("lrbench_pl.policies")
    if name == "__version__":
        return importlib.import_module("lrbench_pl.files").version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lrbench_pl.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
