"""The place of each parameter in a row that holds a whole network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Parameters begin at a multiple of 512 bytes, as torch allocates them: kernels are chosen by alignment too.
_ALIGNMENT = 128


@dataclass(frozen=True)
class Layout:
    """Maps the trained parameters of a network to the columns of a row.

    The parameters of one optimizer group are neighbours. Each keeps its shape and its memory format.

    Args:
        names: Of the parameters.
        shapes: Of the parameters.
        strides: Of the parameters.
        offsets: First column of each.
        groups: First and last column + 1 of each optimizer group.
        width: Number of columns.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> layout = Layout.of(net, [{"params": [net.bias]}, {"params": [net.weight]}])
        >>> layout.names, layout.offsets, layout.groups, layout.width
        (('bias', 'weight'), (0, 128), ((0, 128), (128, 256)), 256)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    width: int

    @classmethod
    def of(cls, model: nn.Module, param_groups: Sequence[dict[str, Any]]) -> Layout:
        """Return the layout of a network whose optimizer has these groups."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        offset, offsets, groups, ordered = 0, [], [], []
        for group in param_groups:
            begin = offset
            for parameter in group["params"]:
                ordered.append(parameter)
                offsets.append(offset)
                offset += math.ceil(parameter.numel() / _ALIGNMENT) * _ALIGNMENT
            groups.append((begin, offset))
        return cls(
            tuple(names[parameter] for parameter in ordered),
            tuple(tuple(parameter.shape) for parameter in ordered),
            tuple(parameter.stride() for parameter in ordered),
            tuple(offsets),
            tuple(groups),
            offset,
        )

    def stacked(self, rows: Tensor) -> list[Tensor]:
        """Return each parameter of all rows, a view of shape (rows, ...)."""
        places = zip(self.shapes, self.strides, self.offsets, strict=True)
        first, step = rows.storage_offset(), rows.stride(0)
        return [torch.as_strided(rows, (len(rows), *s), (step, *strides), first + o) for s, strides, o in places]

    def of_row(self, row: Tensor) -> list[Tensor]:
        """Return each parameter of one row, as views."""
        places = zip(self.shapes, self.strides, self.offsets, strict=True)
        return [torch.as_strided(row, s, strides, row.storage_offset() + o) for s, strides, o in places]
