"""Returns paths and settings of this repository."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def setting(name: str) -> str:
    """Returns the text after `name = ` in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    return re.search(f"^{name} = (.+)$", text, re.MULTILINE)[1]
