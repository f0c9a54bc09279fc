"""Models of other PyPI packages at toy size: none refused, numbers right or None."""

import math
import sys

import numpy as np
import pytest

import keras_varinit as kv

pytest.importorskip("medicai", reason='medicai is missing: pip install "keras-varinit[hub]"')
pytest.importorskip("tcn", reason='keras-tcn is missing: pip install "keras-varinit[hub]"')
from tests.example_files import EXAMPLES
from tests.others.package_models import MODELS

sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from families.measuring import compare

pytestmark = [pytest.mark.hub, pytest.mark.filterwarnings("ignore"), pytest.mark.once]
# What is beyond 1.5 forward or 2 backward: how far at most, and the cause.
EXCEPTIONS: dict[str, tuple[float, float, str]] = {}


@pytest.mark.parametrize("name", MODELS)
def test_read_and_measured(name):
    model = MODELS[name]()
    assert kv.initialize(model, "lecun_normal", seed=0).drawn
    assert all(str(finding) for finding in kv.lint(model))
    x = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:])).astype("float32")
    assert any(row.kind == "weights" for row in kv.measure_signal(model, x, verbose=0))


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_right_or_none(name):
    found = compare(MODELS[name](), draws=24, examples=8, compiled=False)
    forward, backward, _ = EXCEPTIONS.get(name, (1.5, 2.0, ""))
    for direction, limit in (("forward", forward), ("backward", backward)):
        ratio, kernel = found.worst(direction)
        assert math.isnan(ratio) or 1 / limit <= ratio <= limit, (
            f"{kernel}: {direction} predicted ÷ measured is {ratio:.3g}"
        )
        assert found.notes or not found.unknown(direction)
