"""Makes this library's docstrings sections of the API reference.

Docstrings are written for a terminal: "Example:", and paragraphs that begin with "Shape:", "Units:"
or "Reference:". Here the first becomes a section of code, the others begin with a bold word, and
arXiv numbers and `examples/RESULTS.md` become links.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_WORDS = "Shape|Units|Reference|Cost|Measured here|Theirs"
_REWRITES = (
    (re.compile(r"^Example:$", re.MULTILINE), "Examples:"),
    # A heading word with an indented text under it.
    (
        re.compile(rf"^({_WORDS}):\n((?:    .*\n?)+)", re.MULTILINE),
        lambda m: f"{m[1]}: " + re.sub(r"^    ", "", m[2], flags=re.MULTILINE),
    ),
    (re.compile(rf"^({_WORDS})\b( \([^)]*\))?:", re.MULTILINE), r"**\1**\2:"),
    (re.compile(r"\barXiv\s+(\d{4}\.\d{4,5})"), r"[arXiv \1](https://arxiv.org/abs/\1)"),
    (re.compile(r"\bexamples/RESULTS\.md"), "[results](../results.md)"),
)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
        obj.docstring.value = text

    def on_package(self, *, pkg: Any, **_: Any) -> None:
        """Points public names at functions where a module of the same name hides them."""
        for name, member in list(pkg.members.items()):
            if not member.is_alias:
                continue
            module = pkg.modules_collection.get_member(member.target_path)
            if module.is_module and name in module.members:
                path = f"{module.path}.{name}"
                pkg.set_member(name, griffe.Alias(name, path, parent=pkg))
