"""docs/kernels.md: what stands between the marks is generated, everything else is kept as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- generated: {name} -->", f"<!-- end: {name} -->"


def sections(text: str) -> dict[str, str]:
    """Name → what stands between its marks."""
    return dict(re.findall(r"<!-- generated: (\S+) -->\n(.*?)\n<!-- end: \1 -->", text, re.DOTALL))


def filled(text: str, generated: Mapping[str, list[str]]) -> str:
    """The page with these sections' lines. Raises ValueError where the page has no section of a name."""
    if unknown := generated.keys() - sections(text).keys():
        raise ValueError(f"no section of the page: {sorted(unknown)}")
    for name, lines in generated.items():
        first, last = _marks(name)
        start, end = text.index(first) + len(first), text.index(last)
        text = text[:start] + "\n" + "\n".join(lines) + "\n" + text[end:]
    return text
