"""The names of settings: suggestions for unknown ones, and what old ones became."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping


def with_new_names(text: str, renamed: Mapping[str, str]) -> str:
    """Returns a gin configuration in which old names are replaced by new ones.

    Args:
      text: The configuration.
      renamed: The new names of configurables and settings, by the old ones.
    """
    for old in sorted(renamed, key=len, reverse=True):  # Settings before configurables.
        pattern = rf"(^|[@/]){re.escape(old)}(?=[.\s()]|$)"
        new = rf"\g<1>{renamed[old]}"
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


def suggestion(
    message: str, known: Mapping[str, Callable], renamed: Mapping[str, str]
) -> str:
    """Returns a hint at the right name for gin's message about an unknown one.

    Args:
      message: The message of gin's error.
      known: The registered configurables, by name.
      renamed: See `with_new_names`.
    """
    unknown = re.search(
        r"No configurable matching (?:reference )?'@?([\w./]+)(?:\(\))?'", message
    )
    if unknown:
        name = unknown[1].split("/")[-1]
        return _renaming(name, renamed) or closest(name, known)
    unknown = re.search(r"Configurable '([\w./]+)' .* parameter named '(\w+)'", message)
    if unknown:
        name, parameter = unknown[1].split("/")[-1], unknown[2]
        target = known.get(name)
        parameters = inspect.signature(target).parameters if target else ()
        setting = f"{name}.{parameter}"
        return _renaming(setting, renamed) or closest(parameter, parameters)
    return ""


def closest(name: str, candidates: Iterable[str]) -> str:
    """Returns "Did you mean …?", or the candidates if none is similar."""
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known: {names}."


def _renaming(name, renamed):
    """Returns what a configurable and its settings, or one setting, are called now."""
    pairs = [
        f"{old} is now {new}"
        for old, new in renamed.items()
        if old == name or (old.startswith(f"{name}.") and name in renamed)
    ]
    return f" {'; '.join(pairs)}." if pairs else ""
