"""Compares the configuration of a run with the one it was started with."""

import ast
import difflib
import inspect
import os
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from retinanet_tpu.estimator import gin_files


def differences(
    before: str,
    after: str,
    known: Mapping[str, Callable[..., Any]] = types.MappingProxyType({}),
    ignoring: Collection[str] = (),
) -> list[str]:
    """Returns the lines that differ between configurations, as '- old' and '+ new'.

    A parameter that one of them sets to its default and the other does not set is the
    same in both. Newer gin files may set what older ones left out.

    Args:
      before: A whole configuration. Its relative paths, which older versions saved, are
        relative to the working directory.
      after: Another whole configuration.
      known: The functions and classes by name, for their defaults.
      ignoring: The names whose settings may differ.
    """
    old, new = (
        [line for line in _settings(text) if _name(line) not in ignoring]
        for text in (before, after)
    )
    old, new = _without_defaults(old, new, known), _without_defaults(new, old, known)
    changes = difflib.ndiff(_with_absolute_paths(old, like=new), new)
    return [line for line in changes if line[0] in "+-"]


def _settings(text: str) -> list[str]:
    """Returns the lines of a configuration without comments; gin breaks long lines."""
    lines = text.replace("\\\n    ", "").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _name(line: str) -> str:
    return line.partition(" =")[0]


def _without_defaults(
    lines: Sequence[str],
    others: Sequence[str],
    known: Mapping[str, Callable[..., Any]],
) -> list[str]:
    """Returns lines without the defaults that `others` does not set."""
    names = {_name(line) for line in others}
    return [
        line for line in lines if _name(line) in names or not _is_default(line, known)
    ]


def _is_default(line: str, known: Mapping[str, Callable[..., Any]]) -> bool:
    """Returns whether a line sets a parameter to its default."""
    path, _, text = line.partition(" = ")
    selector, _, name = path.rpartition(".")
    target = known.get(gin_files.last_name(selector))
    # Without a value, a scope takes that of the setting without scope.
    if "/" in selector or target is None:
        return False
    parameter = inspect.signature(target).parameters.get(name)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):  # A reference or a macro.
        return False
    return parameter is not None and repr(value) == repr(parameter.default)


def _with_absolute_paths(lines: Sequence[str], like: Sequence[str]) -> list[str]:
    """Returns lines whose relative paths are absolute if they are in other lines."""

    def absolute(line: str) -> str:
        match = re.fullmatch(r"([\w./]+) = '([^'\\]+)'", line)
        if match:
            absolute_line = f"{match[1]} = {os.path.abspath(match[2])!r}"
            return absolute_line if absolute_line in like else line
        return line

    return [absolute(line) for line in lines]
