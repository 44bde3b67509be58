"""The names of settings: replacements of old ones, suggestions for unknown ones."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def with_new_names(text: str, renamed: Mapping[str, str]) -> str:
    """Returns a gin configuration in which old names are replaced by new ones.

    Args:
      text: The configuration.
      renamed: The new names of configurables and settings, by the old ones.
    """
    # Longest first, so that settings come before their configurables.
    for old in sorted(renamed, key=len, reverse=True):
        pattern = rf"(^|[@/]){re.escape(old)}(?=[.\s()]|$)"
        new = rf"\g<1>{renamed[old]}"
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


def suggestion(
    message: str, known: Mapping[str, Callable[..., Any]], renamed: Mapping[str, str]
) -> str:
    """Returns a suggestion for the unknown name in an error of gin, or "".

    Args:
      message: The message of the error.
      known: The registered configurables, by name.
      renamed: The new names by the old ones; see `with_new_names`.
    """
    unknown = re.search(
        r"No configurable matching (?:reference )?'@?([\w./]+)(?:\(\))?'", message
    )
    if unknown:
        name = unknown[1].split("/")[-1]
        return (_renaming(name, renamed) or closest(name, known)) + (
            " If it is of a module of your own, pass a --gin_file that imports it; in "
            "a program, import it before retinanet_tpu.load."
        )
    unknown = re.search(r"Configurable '([\w./]+)' .* parameter named '(\w+)'", message)
    if unknown:
        name, parameter = unknown[1].split("/")[-1], unknown[2]
        target = known.get(name)
        parameters = inspect.signature(target).parameters if target else ()
        setting = f"{name}.{parameter}"
        return _renaming(setting, renamed) or closest(parameter, parameters)
    return ""


def closest(name: str, candidates: Iterable[str]) -> str:
    """Returns "Did you mean …?", or all candidates if none is similar.

    Args:
      name: The unknown name.
      candidates: The known names.
    """
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known: {names}."


def _renaming(name, renamed):
    """Returns the new names of a configurable and its settings, or of one setting."""
    pairs = [
        f"{old} is now {new}"
        for old, new in renamed.items()
        if old == name or (old.startswith(f"{name}.") and name in renamed)
    ]
    return f" {'; '.join(pairs)}." if pairs else ""
