"""Explain errors in a configuration in one line: what was given, what was expected, what was probably meant.

All commands that compose a configuration use it (``lrbench run``, ``preview``, ``lint``, ``db best``).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from lrbench_pl.runs.options import FORMER_KEYS, UserError, one_line
from lrbench_pl.words import clean

_FULL_ERROR = "HYDRA_FULL_ERROR"
_NOT_KEYS = ("names", "hydra")  # never suggested: not set by hand, or only below
_CUTOFF = 0.6  # ratio of difflib
_MOST_SUGGESTIONS = 3


def explain(error: BaseException) -> str | None:
    """Explain an error of a configuration in one line; None for any other error.

    Example:
        >>> explain(UserError("lr must be a number"))
        'lr must be a number'
        >>> explain(KeyError("a bug of ours")) is None
        True
    """
    for each in _chain(error):
        if str(each) == "Config group override must be a string or a list. Got NoneType":
            return "a group takes the name of one of its files, got null; for no further policy or no logger give none"
        if isinstance(each, yaml.MarkedYAMLError):
            return _of_yaml(each)
        if isinstance(each, MissingConfigException) and each.missing_cfg_file is not None:
            return _of_choice(each)
        if isinstance(each, (ConfigAttributeError, ConfigKeyError)) and (words := _of_key(error, each)) is not None:
            return words
        if isinstance(each, UnicodeDecodeError):
            return f"expected YAML in UTF-8, got bytes of another encoding ({one_line(each)}); save the file as UTF-8"
        if isinstance(each, OverrideParseException):
            return _of_grammar(each)
        if isinstance(each, InterpolationKeyError) and each.full_key and each.msg:
            return f"{each.full_key}: {str(each.msg).splitlines()[0]}"
    known = (UserError, HydraException, OmegaConfBaseException)
    if not isinstance(error, known):
        return None
    innermost = [each for each in _chain(error) if str(each).strip()]
    return one_line(innermost[0] if innermost else error)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error in the configuration as one line and exit with code 1.

    The context contains a Hydra program.

    ``HYDRA_FULL_ERROR=1`` shows the traceback, as usual.
    """
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"  # Hydra raises the error instead of printing it
    try:
        yield
    except Exception as error:
        words = None if before == "1" else explain(error)
        if words is None:
            raise
        print(f"error: {clean(words)}", file=sys.stderr)
        sys.exit(1)
    finally:
        os.environ.pop(_FULL_ERROR)
        if before is not None:
            os.environ[_FULL_ERROR] = before


def did_you_mean(given: str, choices: Iterable[str]) -> list[str]:
    """Return the choices that are close to ``given``, the closest first.

    Example:
        >>> did_you_mean("lr_polcy", ["lr", "lr_policy", "max_steps"])
        ['lr_policy']
        >>> did_you_mean("trii", ["cos", "sin", "tri", "tri2"])
        ['tri']
    """
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(given.lower(), by_lower, n=_MOST_SUGGESTIONS, cutoff=_CUTOFF)
    close = [name for name in found if _ratio(given, name) > _ratio(given, found[0]) - 0.1]  # not far behind the first
    return [by_lower[name] for name in close]


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, b, a.lower()).ratio()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over the error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _suggestion(names: Iterable[str]) -> str:
    words = " or ".join(names)
    return f"; did you mean {words}?" if words else ""


# -- kinds of errors --------------------------------------------------------------------------------------------


def _of_yaml(error: yaml.MarkedYAMLError) -> str:
    """Explain a file that is not valid YAML."""
    mark = error.problem_mark or error.context_mark
    where = "the YAML" if mark is None else f"{mark.name}, line {mark.line + 1}"
    problem = " ".join(str(error.problem or error.context or "not understood").split())
    if "'\\t'" in problem or "tab" in problem.split():
        return f"{where}: YAML is indented with spaces, got a tab; replace it by spaces"
    begun = error.context_mark
    context = f", {error.context}" if error.context else ""
    if context and begun is not None and mark is not None and begun.line != mark.line:
        context += f" that begins in line {begun.line + 1}"
    return f"{where}: invalid YAML: {problem}{context}; correct the file there"


def _of_choice(error: MissingConfigException) -> str:
    """Explain a choice that its group does not have."""
    file = str(error.missing_cfg_file)
    group, _, choice = file.rpartition("/")
    parent = re.match(r"In '([^']+)': ", str(error))
    where = f"{parent[1]}.yaml: " if parent is not None and parent[1] not in ("config", "hydra/config") else ""
    options = sorted(map(str, error.options or ()))
    if not group or not options:
        return f"{where}there is no configuration {file!r}{_suggestion(did_you_mean(choice or file, options))}"
    return (
        f"{where}{group} has no choice {choice!r}{_suggestion(did_you_mean(choice, options)) or ';'} "
        f"choose from {', '.join(options)}"
    )


def _of_key(error: BaseException, missing: OmegaConfBaseException) -> str | None:
    """Explain an unknown key of the command line; None for a key from elsewhere."""
    found = (re.search(r"Could not override '([^']+)'", str(each)) for each in _chain(error))
    if (override := next(filter(None, found), None)) is None:
        return None
    given = override[1]
    if "/" in given:  # a group below another one
        meant = did_you_mean(given, _groups())
        return f"there is no group {given!r}{_suggestion(meant) or '; lrbench run --help lists them'}"
    if given in FORMER_KEYS:
        return f"there is no key {given!r} any more; it is called {FORMER_KEYS[given]}"
    parent = missing.parent_node
    at, _, key = str(missing.full_key or given).rpartition(".")
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) and not parent._is_none() else []
    prefix = f"{at}." if at else ""
    names = siblings if at else [*(name for name in siblings if name not in _NOT_KEYS), *_groups()]
    meant = [prefix + name for name in did_you_mean(key, dict.fromkeys(names))]
    if not meant:
        meant = [name for name in _keys(_root(parent)) if name.rpartition(".")[2] == key][:_MOST_SUGGESTIONS]
    if meant:
        return f"there is no key {given!r}{_suggestion(meant)}"
    if at and siblings:
        return f"there is no key {given!r}; {at} has {', '.join(sorted(siblings))} (a key of your own: +{given}=…)"
    return f"there is no key {given!r}; lrbench run --help lists them (a key of your own: +{given}=…)"


def _root(node: object) -> DictConfig | None:
    while isinstance(node, DictConfig) and node._get_parent() is not None:
        node = node._get_parent()
    return node if isinstance(node, DictConfig) else None


def _keys(node: DictConfig | None, prefix: str = "") -> Iterator[str]:
    """Iterate over the dotted keys of a configuration."""
    for key in map(str, node if node is not None else ()):
        if prefix or key not in _NOT_KEYS:
            yield f"{prefix}{key}"
            inner = node._get_node(key) if node is not None else None
            if isinstance(inner, DictConfig) and not inner._is_none():
                yield from _keys(inner, f"{prefix}{key}.")


def _of_grammar(error: OverrideParseException) -> str:
    """Explain an override that violates Hydra's grammar."""
    given = str(error.override)
    if "=" not in given and not given.startswith("~"):
        return f"expected KEY=VALUE, such as lr_policy=tri, got {given!r}"
    lines = [line for line in str(error).splitlines() if line and "^" not in line and not line.startswith("See http")]
    problem = " ".join(line.strip() for line in lines[1:]) or lines[0]
    return (
        f"{given!r} violates Hydra's grammar: {problem}; a value with characters such as , {{ ( needs quotes "
        "inside the quotes of the shell"
    )


@cache
def _groups() -> tuple[str, ...]:
    """Return the groups of ``conf/``."""
    from lrbench_pl.runs.config import conf_dir

    folders = (path.relative_to(conf_dir()) for path in sorted(conf_dir().rglob("*")) if path.is_dir())
    return tuple(path.as_posix() for path in folders if path.as_posix() not in ("hydra", "hydra/help"))
