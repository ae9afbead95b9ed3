"""Hydra's command line as text: quote values, and read back the options that a program was started with.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def quoted(text: str) -> str:
    r"""Quote any text so that Hydra's grammar reads it back unchanged.

    Example:
        >>> print(quoted("it's here/a b"))
        'it\'s here/a b'
    """
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)  # backslashes are special only before a quote
    text = re.sub(r"\\+$", lambda found: found[0] * 2, text)
    return f"'{text}'"


def quoted_path(path: Path) -> str:
    """Return a path as the value of an override, with quotes only if Hydra's grammar needs them.

    Example:
        >>> print(quoted_path(Path("out/p.yaml")), quoted_path(Path("p.yaml")), quoted_path(Path("out dir/p.yaml")))
        out/p.yaml p.yaml 'out dir/p.yaml'
        >>> print(quoted_path(Path("1e3")), quoted_path(Path("null")))
        '1e3' 'null'
    """
    text = str(path)
    is_plain = re.fullmatch(r"[\w./+-]*/[\w./+-]*|[A-Za-z_][\w-]*\.[A-Za-z]\w*", text, re.ASCII)
    return text if is_plain else quoted(text)


def program_options(hydra: Mapping[str, Any]) -> list[str]:
    """Return the command-line options that select the sources of a configuration.

    Args:
        hydra: The node ``hydra``, composed or as stored in ``.hydra/hydra.yaml``.

    Example:
        >>> sources = [{"provider": "main", "path": "conf"}, {"provider": "command-line", "path": "/home/me/mine"}]
        >>> program_options({"runtime": {"config_sources": sources}, "job": {"config_name": "config"}})
        ['--config-dir', '/home/me/mine']
    """
    sources = hydra["runtime"]["config_sources"]
    words = [word for each in sources if each["provider"] == "command-line" for word in ("--config-dir", each["path"])]
    name = (hydra.get("job") or {}).get("config_name")
    words += ["--config-name", name] if name not in (None, "config") else []
    given = (hydra.get("overrides") or {}).get("hydra") or []
    return words + [each for each in map(str, given) if each.lstrip("+").startswith("hydra.searchpath=")]
