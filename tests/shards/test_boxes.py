"""Blocks of a flattened kernel, cut into boxes; parts of kernels without the rest of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_varinit import sharding
from keras_varinit.initializers import draws
from keras_varinit.initializers.streams import BLOCK, random_stream
from keras_varinit.threads import in_threads

pytestmark = pytest.mark.once

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@given(st.data())
def test_boxes_are_the_entries_of_a_range(data):
    shape = tuple(data.draw(SHAPES))
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    entries = np.arange(size).reshape(shape)
    found, offsets = [], 0
    for offset, starts, sizes in draws.boxes(shape, start, stop):
        assert offset == offsets
        offsets += math.prod(sizes)
        place = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
        assert entries[place].shape == sizes
        found += entries[place].ravel().tolist()
    assert found == list(range(start, stop))
    assert len(list(draws.boxes(shape, start, stop))) <= 2 * len(shape) - 1


@pytest.mark.parametrize("shape", [(300, 500), (3, 3, 40, 700), (2 * BLOCK + 5,), (70_000, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_part_of_a_kernel_is_known_without_the_rest(shape, dtype):
    """Boxes at random places; one changed entry in one of them is noticed."""
    factors = np.linspace(0.5, 2, shape[-1], dtype=np.float32)
    factors = factors.reshape((1,) * (len(shape) - 1) + (-1,))
    draw = draws.independent(7, shape, "normal", 0.1).multiplied(factors).scaled(3.0)
    whole = draws.as_array(draw).astype(dtype)
    rng = np.random.default_rng(0)
    parts = {}
    for _ in range(4):
        index = tuple(tuple(sorted(rng.choice(n + 1, 2, replace=False).tolist())) for n in shape)
        parts[index] = whole[tuple(slice(*bounds) for bounds in index)].copy()
    assert draws.equals(draw, parts, dtype, None)
    changed = parts[index]
    changed[tuple(n // 2 for n in changed.shape)] += 1
    assert not draws.equals(draw, parts, dtype, None)


def test_blocks_have_streams_of_their_own():
    """The definition, which every stored seed relies on."""
    drawn = draws.as_array(draws.independent(11, (BLOCK + 3, 2), "normal", 0.5)).ravel()
    for number in range(3):
        block = drawn[number * BLOCK : (number + 1) * BLOCK]
        normal = random_stream(11, number + 1).standard_normal(block.size, np.float32)
        np.testing.assert_array_equal(block, normal * np.float32(0.5))


def test_only_blocks_that_a_part_reaches_into_are_drawn(monkeypatch):
    drawn, original = [], draws.Streams.fill

    def fill(self, start, out):
        drawn.append(start // BLOCK)
        original(self, start, out)

    draw = draws.independent(3, (64, BLOCK // 4), "normal")  # 16 blocks of 4 rows
    whole = draws.as_array(draw)
    monkeypatch.setattr(draws.Streams, "fill", fill)
    index = ((9, 14), (100, 200))
    assert draws.equals(draw, {index: whole[9:14, 100:200]}, "float32", None)
    assert sorted(drawn) == [2, 3]


def test_what_fails_in_a_thread_is_raised():
    done = []

    def work(number):
        if number == 3:
            raise MemoryError("block 3")
        done.append(number)

    with pytest.raises(MemoryError, match="block 3"):
        in_threads(work, 1000)
    assert len(done) < 1000


def test_an_array_on_one_device_is_one_part():
    values = np.zeros((2, 3), np.float32)
    assert list(sharding.parts_of(values)) == [((0, 2), (0, 3))]
    assert sharding.indices(None, (2, 3)) == [((0, 2), (0, 3))]
