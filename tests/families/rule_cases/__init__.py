"""A measured case for every rule of the engine: one file per family, each with a tuple `CASES`.

    Case("Relu", vector, lambda u: dense()(ops.relu(u)), (64,))

is a model in two halves. `front` takes a symbolic input of `shape` and ends in the probe, a
kernel's output u; `back` goes on from u to the last kernel. Both build their layers when called, so
they are functions (`lambda u: dense()(L.ReLU()(u))`), never layers made at import. The harness
draws all kernels again and again and compares E u² at both kernels and E (dL/du)² at the probe, for
white noise at the end, with `kv.analyze(model).predicted`: four standard errors apart at most, or
the `allowance=Allowance(forward, backward, "why")` where a rule approximates.

* The first field holds the kinds that the case is for (one or a tuple): layer classes and names of
  operations, as they are registered. The model must hold an operation that each of them serves.
* `case.py` has fronts (`vector`, `line`, `tokens`, `maps`, …) and kernels (`dense`, `conv`).
* `note=` tells cases of one kind apart (axis, mask, mode, …); every argument of an operation that
  changes what it does to a signal deserves a case.
* `shape` as a list of shapes: `front(x)` gets the first input, `back(u, *others)` the others too.
* `inputs=` draws other inputs, `function(rng, count) -> array or list`; `mean=` is their mean.
* `known=False`: the engine gives None behind the operation, with a note, and nothing is measured.
* `wrong="why"`: the rule is known to be off beyond its allowance; the case fails once it is right.

`python -m tests` runs all cases on the first backend, and on the others `one_of_each`: for each
kind the case of the smallest signals. A new file is found by itself;
`pytest tests/families/test_every_rule.py -k Relu` runs the cases of a kind.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable

from tests.families.rule_cases.case import Case, Kind

_HELPERS = ("case", "measuring")


def all_cases() -> list[Case]:
    """The cases of every family."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _HELPERS)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [case for module in modules for case in module.CASES]


def one_of_each(cases: list[Case], rule_of: Callable[[Kind], object]) -> list[Case]:
    """For every rule one of its cases that are measured, of the smallest signals; as few as do."""
    chosen: list[Case] = []
    covered: set[object] = set()
    measured = [case for case in cases if case.known and not (case.not_on or case.wrong)]
    for case in sorted(measured, key=_work):
        rules = {rule_of(kind) for kind in case.all_kinds}
        if rules - covered:
            chosen.append(case)
            covered |= rules
    return chosen


def _work(case: Case) -> float:
    """About how much there is to compute, as far as shapes tell."""
    shapes = case.shape if isinstance(case.shape, list) else [case.shape]
    return case.examples * sum(math.prod(n or 1 for n in shape) for shape in shapes)
