"""Read the docstrings as the package writes them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_FORMULA = re.compile(r"^lr\(t\) = .+(?:\n\S.*)*", re.MULTILINE)
_TABLE = re.compile(r"^=+(?: =+)+\n(?:.+\n)+=+(?: =+)+$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Give ``Example:`` the meaning of Google's ``Examples:``, and set formulas and tables as they are."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object before it is parsed."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            for block in (_FORMULA, _TABLE):
                text = block.sub(lambda found: f"```text\n{found[0].replace('``', '')}\n```", text)
            obj.docstring.value = text
