"""Names and rules in checkpoints of earlier versions, and their current names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrbench_pl.composing.plan import Rules, is_short
from lrbench_pl.composing.settings import ADDED

SETTINGS = {"trunks": "stable"}
_KINDS = {"trunk": "stable"}
_REQUEST = {**SETTINGS, "target_accuracy": "target"}
_JOURNAL = {"outcomes": "results", "marks": "fingerprints"}
_COMPOSITION = {
    "asked": "request",
    "leg_from": "segment_start",
    "leg_losses": "segment_losses",
    "leg_diverged": "segment_diverged",
}


def with_current_names(composition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a composition from any version with the current names.

    Example:
        >>> asked = {"trunks": ["sine"], "rules": "holding"}
        >>> stored = {"asked": asked, "journal": {"outcomes": [], "marks": []}, "leg_from": 3}
        >>> stored |= {"snapshots": {"trunk": 1}, "records": [{"kind": "trunk"}]}
        >>> state = with_current_names(stored)
        >>> state["request"], state["journal"], state["segment_start"]
        ({'stable': ['sine'], 'rules': 'holding', 'accept_average': False}, {'results': [], 'fingerprints': []}, 3)
        >>> state["snapshots"], state["records"]
        ({'stable': 1}, [{'kind': 'stable'}])
    """
    state = _renamed(composition, _COMPOSITION)
    request = _with_rules(_renamed(state["request"], _REQUEST))
    state["request"] = request | {name: value for name, value in ADDED.items() if name not in request}
    state["journal"] = _renamed(state["journal"], _JOURNAL)
    state["snapshots"] = _renamed(state["snapshots"], _KINDS)
    state["records"] = [{**record, "kind": _KINDS.get(record["kind"], record["kind"])} for record in state["records"]]
    return state


def _renamed(mapping: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in mapping.items()}


def _with_rules(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request with its rules: earlier versions began a long budget with a range test, at first always."""
    if "rules" in request:
        return request
    others = {name: value for name, value in request.items() if name != "is_adaptive"}
    short = is_short(request["max_steps"], request["steps between checks"])
    compares = request.get("repeats") is None and (request.get("is_adaptive", False) or short)
    rules: Rules = "comparison" if compares else "range test"
    return {**others, "rules": rules}
