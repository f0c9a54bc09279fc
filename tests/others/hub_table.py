"""A table of all of KerasHub's backbones at toy size: what is refused, unopened, wrong.

    python -m tests.others.hub_table [--names …] [--draws 40] [--as-constructed] [--json FILE]

Text models are measured with a fixed length; `--as-constructed` reads them with the unknown length
that their constructors give, and measures nothing.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_varinit as kv
from tests.example_files import EXAMPLES
from tests.others import hub_data, hub_models

sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from families.measuring import Comparison, compare


@dataclasses.dataclass(frozen=True)
class Line:
    """One backbone."""

    name: str
    error: str = ""
    unopened: tuple[str, ...] = ()
    contexts: int = 0
    forward: float = math.nan
    forward_kernel: str = ""
    forward_unknown: int = 0
    backward: float = math.nan
    backward_kernel: str = ""
    backward_unknown: int = 0
    measured: int = 0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def unopened(notes: tuple[str, ...]) -> tuple[str, ...]:
    """The notes that name a layer that could not be opened."""
    return tuple(note for note in notes if "could not be opened" in note)


def measured(name: str, draws: int) -> Comparison:
    """A backbone with known sizes, its kernels drawn and measured."""
    model = hub_models.TOYS[name]()
    if hub_data.has_unknown_length(model):
        model = hub_data.at_length(name, model)
    data = hub_data.data_for(name, model)
    examples, draws = hub_data.EXAMPLES.get(name, 8), hub_data.DRAWS.get(name, draws)
    return compare(model, data, draws=draws, least=min(24, draws), examples=examples)


def line_of(name: str, draws: int, as_constructed: bool) -> Line:
    """Reads or measures one backbone."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    try:
        if as_constructed:
            model = hub_models.TOYS[name]()
            analysis = kv.analyze(model)
            kv.initialize(model, "lecun_normal", seed=0)
            unknown = sum(p.forward is None for p in analysis.predicted.values())
            return Line(
                name,
                unopened=unopened(analysis.notes),
                contexts=len(analysis.contexts),
                forward_unknown=unknown,
                notes=analysis.notes,
                seconds=time.perf_counter() - start,
            )
        found = measured(name, draws)
    except Exception as error:  # the table goes on with the next one
        return Line(name, error=f"{type(error).__name__}: {error}".splitlines()[0])
    return Line(
        name,
        "",
        unopened(found.notes),
        found.all_kernels,
        *found.worst("forward"),
        found.unknown("forward"),
        *found.worst("backward"),
        found.unknown("backward"),
        len(found.kernels),
        found.notes,
        time.perf_counter() - start,
    )


def main() -> None:
    """Prints a line for each backbone, then the sums."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--names", nargs="+", default=list(hub_models.TOYS), help="or parts")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--as-constructed", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # KerasHub's own, of its masks and builds
    names = [n for n in hub_models.TOYS if any(part in n for part in options.names)]
    print(
        f"{'backbone':<31}{'contexts':>9}{'unopened':>9}{'measured':>9}"
        f"{'forward':>9}{'None':>5}{'backward':>9}{'None':>5}{'notes':>6}{'s':>6}"
    )
    lines = []
    for name in names:
        line = line_of(name, options.draws, options.as_constructed)
        lines.append(line)
        if line.error:
            print(f"{name:<31} refused: {line.error[:120]}", flush=True)
            continue
        print(
            f"{name:<31}{line.contexts:>9}{len(line.unopened):>9}{line.measured:>9}"
            f"{line.forward:>9.3g}{line.forward_unknown:>5}"
            f"{line.backward:>9.3g}{line.backward_unknown:>5}{len(line.notes):>6}"
            f"{line.seconds:>6.1f}",
            flush=True,
        )
    print(
        f"{len(lines)} backbones; refused: {sum(bool(line.error) for line in lines)}, "
        f"with unopened layers: {sum(bool(line.unopened) for line in lines)}"
    )
    if options.json:
        rows = [dataclasses.asdict(line) for line in lines]
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
