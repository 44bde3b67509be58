"""Where the parts of this repository are."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def setting(name: str) -> str:
    """Returns the right side of a line of pyproject.toml, as text."""
    text = (ROOT / "pyproject.toml").read_text()
    return re.search(f"^{name} = (.+)$", text, re.MULTILINE)[1]
