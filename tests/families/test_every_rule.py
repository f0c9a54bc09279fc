"""Every rule of the engine against measurement: forward and backward, on a minimal network.

The cases stand in `tests/families/rule_cases`, and how they are drawn in its `measuring`. Each mean
over draws must be within four standard errors of the prediction, or within the case's allowance,
and certain to 3 %.

On the backends after the first `python -m tests` leaves out what is marked `once`: of each rule one
case is left, whose means are as uncertain as they may be.
"""

import dataclasses

import keras
import pytest

from keras_varinit.families.identity import unchanged
from keras_varinit.keras_private import is_raw_operation, operation_name
from keras_varinit.signals import registry
from tests.families.rule_cases import all_cases, one_of_each
from tests.families.rule_cases.measuring import Network

CASES = all_cases()
EVERYWHERE = {case.name for case in one_of_each(CASES, registry.registered("signal").get)}


def registered():
    """Every kind with a rule: Keras's, as other tests register their own layers; no identities."""
    rules = registry.registered("signal")
    kinds = {kind for kind, rule in rules.items() if rule is not unchanged}
    # Layers with kernels of their own kind that follow the signal rule of a base.
    kinds |= {
        kind
        for kind in registry.registered("role")
        if isinstance(kind, type) and kinds.intersection(kind.__mro__)
    }
    return {k for k in kinds if isinstance(k, str) or k.__module__.startswith("keras.")}


def kind_of(operation):
    """Under which kind an operation finds its rule."""
    if is_raw_operation(operation):
        return operation_name(operation)
    kinds = registered()
    return next((cls for cls in type(operation).__mro__ if cls in kinds), type(operation))


def shown(kinds):
    return sorted(k if isinstance(k, str) else f"keras.layers.{k.__name__}" for k in kinds)


def test_every_rule_has_a_case():
    covered = {kind for case in CASES for kind in case.all_kinds}
    assert shown(registered() - covered) == []


def test_every_case_is_of_a_rule():
    """Some cases show that what has no rule is said not to be known."""
    covered = {kind for case in CASES if case.known for kind in case.all_kinds}
    assert shown(covered - registered()) == []
    names = [case.name for case in CASES]
    assert sorted({n for n in names if names.count(n) > 1}) == []


def parameter(case):
    marks = [] if case.name in EVERYWHERE else [pytest.mark.once]
    if case.wrong:
        marks.append(pytest.mark.xfail(reason=case.wrong, raises=AssertionError))
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_what_is_predicted_is_what_is_measured(case):
    if keras.backend.backend() in case.not_on:
        pytest.skip("the backend cannot run this model")
    if case.name in EVERYWHERE and keras.backend.backend() != "tensorflow":
        case = dataclasses.replace(case, precision=0.03)
    network = Network(case)
    kinds = {kind_of(node.operation) for node in network.nodes}
    assert shown(set(case.all_kinds) - kinds) == [], "operations that the case does not hold"
    predicted = network.predicted()
    if not case.known:
        assert predicted["end"] is None
        assert predicted["gradient"] is None
        assert network.analysis.notes
        return
    assert None not in predicted.values(), (predicted, network.analysis.notes)
    allowed = dict(probe=case.allowance[0], end=case.allowance[0], gradient=case.allowance[1])
    for name, measured in network.measure().items():
        assert measured.error <= 0.03, f"{name}: uncertain by {measured.error:.1%}"
        if measured.mean == predicted[name] == 0:
            continue
        off = measured.mean / max(predicted[name], 1e-300) - 1
        assert abs(off) <= max(4 * measured.error, allowed[name]), (
            f"{name}: measured {measured.mean:.4g}, predicted {predicted[name]:.4g}, off by "
            f"{off:.1%} with a standard error of {measured.error:.1%}"
        )
