"""The option `--preset`: sets of defaults, which `--help` shows."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

MEANINGS = {
    "smoke": "seconds, every part runs, nothing is learned",
    "cpu": "what two cores do",
    "paper": "the source's setting, for a GPU",
}

Presets = Mapping[str, Mapping[str, Any]]


def add_option(group: Any, names: Sequence[str]) -> None:
    """Adds `--preset`.

    Args:
        group: A parser or a group of its options.
        names: Of the presets.
    """
    meanings = "; ".join(f"{name}: {MEANINGS[name]}" for name in MEANINGS if name in names)
    group.add_argument(
        "--preset",
        choices=[name for name in MEANINGS if name in names],
        default="cpu",
        help=f"{meanings}. Options beside it win; what each sets is listed below (default: "
        "%(default)s)",
    )


def parse(
    parser: argparse.ArgumentParser, presets: Presets, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Reads a command line; a preset fills in what it does not have.

    Args:
        parser: With the option `--preset`.
        presets: Defaults by the preset's name.
        argv: The arguments; `None` takes those of the process.
    """
    parser.epilog = f"{listed(presets)}\n{parser.epilog or ''}"
    own = {name: parser.get_default(name) for name in presets["cpu"]}
    parser.set_defaults(**presets["cpu"])  # what --help shows
    known, _ = parser.parse_known_args(argv)
    values = {**own, **presets[known.preset]}
    if "data" in values:
        # Kept apart, so that a folder alone is not taken for one of the preset's data set.
        values["default_data"] = values.pop("data")
        values["data"] = None
    parser.set_defaults(**values)
    return parser.parse_args(argv)


def listed(presets: Presets) -> str:
    """The options that each preset sets, as one would write them."""
    lines = ["presets:"]
    for name, values in presets.items():
        text = " ".join(
            f"--{key.replace('_', '-')} {_shown(value)}" for key, value in values.items()
        )
        lines += textwrap.wrap(
            text,
            96,
            initial_indent=f"  {name:<7}",
            subsequent_indent=" " * 9,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
