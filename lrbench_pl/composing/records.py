"""Records of the segments of a composition, as ``tuning.json`` stores them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrbench_pl.composing.segments import Segment, SegmentResult
from lrbench_pl.policies import Policy

REACHED = "reached the target"
_POINTS = 20  # intervals between the rates of a record


class SegmentRecords:
    """Records of all segments, and which of them are part of the composed policy.

    A record is plain data with the keys

    - ``kind``, ``steps``, ``averaged`` and ``value`` of the segment;
    - ``policy_step`` and ``spent``: step of the policy and of the training at its start;
    - ``rates``: 21 rates at equal distances;
    - ``kept``: whether it is part of the composed policy;
    - ``avoided``: choices that it showed to be bad;
    - ``why``: its note, or how it ended.

    Attributes:
        records: One record per segment, in order.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._best_count = 0  # number of records at the last snapshot of the best policy

    @property
    def avoided(self) -> list[str]:
        """Choices that turned out to be bad, as messages."""
        return [message for record in self.records for message in record["avoided"]]

    def add(self, segment: Segment, result: SegmentResult, reached: bool = False) -> None:
        """Add the record of a segment.

        Args:
            segment: The segment.
            result: Its result; ``result.spent`` is the number of training steps at its end.
            reached: Whether it reached the target.
        """
        done, value = result.steps, result.value
        end = "diverged" if result.diverged else segment.note
        self.records.append(
            {
                "kind": segment.kind,
                "policy_step": segment.start,
                "spent": result.spent - done,
                "steps": done,
                "averaged": segment.averaged,
                "rates": _rates(segment.policy, segment.start, done),
                "value": value if value is not None and math.isfinite(value) else None,
                "kept": reached or (segment.kind == "stable" and not result.diverged),
                "avoided": [],
                "why": REACHED if reached else end,
            }
        )

    def add_avoided(self, message: str) -> None:
        """Add a message about a bad choice to the last record."""
        self.records[-1]["avoided"].append(message)

    def keep_path(self, policy: Policy, step: int) -> None:
        """Keep the segments that led to this step of the policy, and only those.

        Several segments may end at the same step; those with other rates than the policy were abandoned.
        """
        for record in reversed(self.records):
            if record["kind"] != "range":
                start, steps = record["policy_step"], record["steps"]
                is_before = start + steps == step and record["why"] != "diverged"
                record["kept"] = is_before and record["rates"] == _rates(policy, start, steps)
                step = start if record["kept"] else step

    def mark_best(self, policy: Policy, step: int) -> None:
        """Keep the segments that led to the best policy, which ends at this step."""
        self._best_count = len(self.records)
        self.keep_path(policy, step)

    def drop_after_best(self) -> None:
        """Keep no segment after the best policy, whose snapshot is restored."""
        for record in self.records[self._best_count :]:
            record["kept"] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the records for a checkpoint."""
        return {"records": [dict(record) for record in self.records], "best_records": self._best_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the records from :meth:`state_dict`."""
        stored: Sequence[Mapping[str, Any]] = state["records"]
        self.records = [{**record, "avoided": list(record.get("avoided", ()))} for record in stored]
        self._best_count = state["best_records"]


def _rates(policy: Policy, start: int, steps: int) -> list[float]:
    return [policy(start + i * (steps - 1) // _POINTS) for i in range(_POINTS + 1)]
