"""How far the predicted signal is from the measured one, on networks of many families.

    python examples/benchmarks/signal_families.py [--group families|operations|published|all]
        [--networks …] [--initializer lecun_normal] [--draws N] [--error SHARE] [--seed N]
        [--csv FILE] [--json FILE]

For each network all kernels are drawn again and again with the standard deviation of one neutral
scheme (`lecun_normal` by default, whose variance is 1/fan-in whatever the network). The second
moment of every kernel's output and of its gradient are measured and averaged over the draws. The
table has prediction ÷ measurement at the kernel where it is worst, among those whose mean is
certain to 12 %, and how many kernels have no prediction; "notes" counts what `kv.analyze` says it
cannot know. The goal is at most 1.4 forward and 1.8 backward, or no number and a note.
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from families import GROUPS
from families.measuring import Comparison, compare
from families.network import Network

LIMITS = {"forward": 1.4, "backward": 1.8}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table; NaN where nothing is predicted or nothing is certain."""

    network: str
    forward: float
    forward_kernel: str
    forward_unknown: int
    forward_certain: int
    backward: float
    backward_kernel: str
    backward_unknown: int
    backward_certain: int
    measured: int
    kernels: int
    draws: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def fails(self) -> str:
        """What is beyond the goal, in a word or two."""
        reasons = [name for name, limit in LIMITS.items() if beyond(getattr(self, name), limit)]
        unknown = self.forward_unknown or self.backward_unknown
        return " ".join(reasons + ["silent"] * bool(unknown and not self.notes))


def beyond(ratio: float, limit: float) -> bool:
    """Whether a ratio is off by more than a factor."""
    if math.isnan(ratio):
        return False
    return not 1 / limit <= ratio <= limit


def line_of(name: str, found: Comparison, seconds: float) -> Line:
    """A comparison as a line."""
    forward, backward = found.worst("forward"), found.worst("backward")
    return Line(
        name,
        *forward,
        found.unknown("forward"),
        found.certain("forward"),
        *backward,
        found.unknown("backward"),
        found.certain("backward"),
        len(found.kernels),
        found.all_kernels,
        found.draws,
        seconds,
        found.notes,
    )


def measure(name: str, network: Network, options: argparse.Namespace) -> Line:
    """Builds, draws and compares one network."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(options.seed)
    start = time.perf_counter()
    bar = keras.utils.Progbar(options.draws, unit_name="draw") if sys.stderr.isatty() else None
    found = compare(
        network.make(),
        network.data,
        scheme=options.initializer,
        draws=options.draws,
        error=options.error,
        examples=network.examples,
        seed=options.seed,
        mean=network.mean,
        deviation=network.deviation,
        show=bar.update if bar else lambda draw: None,
    )
    if bar:
        print("\r\x1b[K", end="")
    return line_of(name, found, time.perf_counter() - start)


HEADER = (
    f"{'network':<36}{'forward':>8}{'None':>5}{'certain':>8}{'backward':>10}{'None':>5}"
    f"{'certain':>8}{'of':>4}{'notes':>6}{'draws':>6}{'s':>6}  beyond the goal"
)


def shown(line: Line) -> str:
    """For print."""
    return (
        f"{line.network:<36}{_number(line.forward):>8}{line.forward_unknown:>5}"
        f"{line.forward_certain:>8}{_number(line.backward):>10}{line.backward_unknown:>5}"
        f"{line.backward_certain:>8}{line.measured:>4}{len(line.notes):>6}{line.draws:>6}"
        f"{line.seconds:>6.1f}  {line.fails}"
    )


def _number(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.3g}"


def main() -> int:
    """Prints the table, a line at a time; 1 if a network is beyond the goal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--group", choices=[*GROUPS, "all"], default="families")
    parser.add_argument("--networks", nargs="+", help="names or parts of names")
    parser.add_argument("--initializer", default="lecun_normal", help="for `kv.initialize`")
    parser.add_argument("--draws", type=int, default=150, help="at most so many (default 150)")
    parser.add_argument(
        "--error", type=float, default=0.03, help="standard error to stop at (default 0.03)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="write the lines there")
    parser.add_argument("--json", type=Path, help="write the lines with their notes there")
    options = parser.parse_args()
    groups = GROUPS if options.group == "all" else {options.group: GROUPS[options.group]}
    networks = {name: network for group in groups.values() for name, network in group.items()}
    wanted = [
        name
        for name in networks
        if not options.networks or any(part in name for part in options.networks)
    ]
    if not wanted:
        parser.error(f"no network has any of {options.networks} in its name: {list(networks)}")
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, Python "
        f"{platform.python_version()}; {options.initializer}, at most {options.draws} draws"
    )
    print(HEADER)
    lines = []
    for name in wanted:
        lines.append(measure(name, networks[name], options))
        print(shown(lines[-1]), flush=True)
    failing = [line.network for line in lines if line.fails]
    print(f"{len(lines) - len(failing)} of {len(lines)} networks within the goal")
    _write(lines, options)
    return bool(failing)


def _write(lines: list[Line], options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = [dataclasses.asdict(line) for line in lines]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "notes": len(row["notes"])} for row in rows)


if __name__ == "__main__":
    sys.exit(main())
