"""Draws, described before they are made: whole or shard by shard, block by block, in threads.

An initializer says what a kernel's entries are (`Draw`); here they are drawn, checked, digested,
cast and compared. A block of 2^16 entries is in the processor's cache while all of that is done
to it, and a shard is drawn without the rest of its kernel.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from keras_varinit import sharding
from keras_varinit.initializers import of_keras
from keras_varinit.initializers.streams import BLOCK, Float32Array, fill_block
from keras_varinit.sharding import Index, Layout
from keras_varinit.tensors import digest, digest_of_chunk, joined
from keras_varinit.threads import in_threads
from keras_varinit.typing import AnyArray, ArrayLike, Function

# Changes in place a box of a kernel's entries that begins at these indices.
Edit: TypeAlias = Callable[[tuple[int, ...], Float32Array], None]


@dataclasses.dataclass(frozen=True)
class Streams:
    """Independent entries from the blocks of a stream."""

    key: int
    distribution: str
    stddev: float

    def fill(self, start: int, out: Float32Array) -> None:
        """Writes the entries of the flattened kernel from `start`, where a block begins."""
        fill_block(self.key, start // BLOCK, out, self.distribution, self.stddev)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Equal entries."""

    value: float

    def fill(self, start: int, out: Float32Array) -> None:
        """Writes entries of the flattened kernel."""
        out[...] = np.float32(self.value)


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Entries that can only be computed together, such as those of an orthogonal matrix."""

    values: Float32Array

    def fill(self, start: int, out: Float32Array) -> None:
        """Writes the entries of the flattened kernel from `start`."""
        out[...] = self.values.reshape(-1)[start : start + out.size]


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
    """What an initializer that is not of this library draws, in float32, on the backend."""

    initializer: Function


Source: TypeAlias = Streams | Constant | Entries | Foreign


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """A kernel's entries, not drawn yet: a source, and what is done to its entries in turn.

    A number among the edits is a factor.
    """

    shape: tuple[int, ...]
    source: Source
    edits: tuple[float | Edit, ...] = ()

    def scaled(self, factor: float) -> "Draw":
        """The draw with all entries multiplied."""
        return dataclasses.replace(self, edits=(*self.edits, factor))

    def edited(self, edit: Edit) -> "Draw":
        """The draw with its entries edited, box by box."""
        return dataclasses.replace(self, edits=(*self.edits, edit))

    def multiplied(self, factors: Float32Array) -> "Draw":
        """The draw times an array of as many axes, which are of size 1 or the kernel's."""

        def multiply(starts: tuple[int, ...], box: Float32Array) -> None:
            place = zip(starts, box.shape, factors.shape, strict=True)
            box *= factors[tuple(slice(a, a + n) if m > 1 else slice(1) for a, n, m in place)]

        return self.edited(multiply)

    def fill(self, start: int, out: Float32Array) -> None:
        """Writes a block of the flattened kernel's entries, from `start`."""
        if isinstance(self.source, Foreign):
            raise TypeError("what another library draws has no blocks")
        self.source.fill(start, out)
        for edit in self.edits:
            if not callable(edit):
                out *= np.float32(edit)
                continue
            for offset, starts, sizes in boxes(self.shape, start, start + out.size):
                edit(starts, out[offset : offset + math.prod(sizes)].reshape(sizes))


def independent(key: int, shape: tuple[int, ...], distribution: str, stddev: float = 1.0) -> Draw:
    """Zero-mean entries of a "normal", "truncated_normal" or "uniform" distribution."""
    return Draw(shape, Streams(key, distribution, stddev))


def constant(shape: tuple[int, ...], value: float) -> Draw:
    """Equal entries."""
    return Draw(shape, Constant(value))


def as_array(draw: Draw) -> Float32Array:
    """Draws a whole kernel in float32, for what is computed from it."""
    parts, _, _ = _draw_parts(draw, "float32", None, False, False)
    return parts[sharding.whole(draw.shape)]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A drawn kernel.

    Args:
        value: A tensor of the backend.
        parts: The parts that this host holds as arrays; None if the backend drew the value.
        digests: Of each part, if asked for.
        is_finite: Whether all entries are finite; None if not asked for.
    """

    value: ArrayLike
    parts: Mapping[Index, AnyArray] | None
    digests: Mapping[Index, bytes]
    is_finite: bool | None


def make(
    draw: Draw,
    dtype: str,
    layout: Layout | None = None,
    *,
    digests: bool = False,
    finite: bool = False,
) -> Drawn:
    """Draws a kernel.

    Args:
        draw: What to draw.
        dtype: The type to cast to, after everything else.
        layout: Where to; None for one device.
        digests: Whether to digest what is drawn.
        finite: Whether to check that it is finite.
    """
    if isinstance(draw.source, Foreign):
        if layout is None and not any(map(callable, draw.edits)):
            value = of_keras.drawn(draw.source.initializer, draw.shape)
            for factor in draw.edits:
                value = value * factor
            return Drawn(of_keras.cast(value, dtype), None, {}, None)
        parts = _foreign_parts(draw, layout)
        checked = all(map(_is_finite_as(dtype), parts.values())) if finite else None
        cast = {index: _cast(values, dtype) for index, values in parts.items()}
        found = {index: digest(values) for index, values in cast.items()} if digests else {}
    else:
        cast, found, checked = _draw_parts(draw, dtype, layout, digests, finite)
    return Drawn(sharding.assembled(layout, draw.shape, cast), cast, found, checked)


def equals(draw: Draw, parts: Mapping[Index, AnyArray], dtype: str, layout: Layout | None) -> bool:
    """Whether the parts of a kernel are what is drawn, bit for bit; draws no more than a block."""
    if isinstance(draw.source, Foreign):
        if layout is None and not any(map(callable, draw.edits)):
            again = sharding.parts_of(make(draw, dtype).value)
        else:
            drawn = _foreign_parts(draw, layout)
            again = {index: _cast(values, dtype) for index, values in drawn.items()}
        return all(np.array_equal(again[index], values) for index, values in parts.items())
    differs: list[bool] = []

    def compare(index: Index, place: tuple[slice, ...], values: Float32Array) -> None:
        target = _target(index, parts[index], draw.shape)
        if not differs and not np.array_equal(target[place], _cast(values, dtype)):
            differs.append(True)

    _visit(draw, list(parts), compare, stop=differs)
    return not differs


def _draw_parts(
    draw: Draw, dtype: str, layout: Layout | None, digests: bool, finite: bool
) -> tuple[dict[Index, AnyArray], dict[Index, bytes], bool | None]:
    """The parts, their digests and whether they are finite."""
    indices = sharding.indices(layout, draw.shape)
    parts = {index: sharding.empty(sharding.shape_of(index), dtype) for index in indices}
    whole = sharding.whole(draw.shape)
    chunks = [b""] * math.ceil(math.prod(draw.shape) / BLOCK)
    infinite: list[bool] = []
    is_finite = _is_finite_as(dtype)

    def write(index: Index, place: tuple[slice, ...], values: Float32Array) -> None:
        target = _target(index, parts[index], draw.shape)[place]
        if target.dtype == np.float32:
            target[...] = values
        else:
            with np.errstate(over="ignore"):
                target[...] = values
        if finite and not is_finite(values):
            infinite.append(True)
        if digests and index == whole:
            chunks[place[0].start // BLOCK] = digest_of_chunk(target)

    def fill(number: int) -> None:
        """Of a whole kernel in float32: in place."""
        start = number * BLOCK
        block = flat[start : start + BLOCK]
        draw.fill(start, block)
        if finite and not is_finite(block):
            infinite.append(True)
        if digests:
            chunks[number] = digest_of_chunk(block)

    if indices == [whole] and dtype == "float32":
        flat = parts[whole].reshape(-1)
        in_threads(fill, len(chunks))
    else:
        _visit(draw, indices, write)
    found = {}
    if digests:
        found = {i: joined(chunks) if i == whole else digest(part) for i, part in parts.items()}
    return parts, found, not infinite if finite else None


def _visit(
    draw: Draw,
    indices: Sequence[Index],
    act: Callable[[Index, tuple[slice, ...], Float32Array], None],
    stop: Sequence[bool] = (),
) -> None:
    """Draws each block that some part reaches into, and acts on what it shares with each part.

    `act` is told the part, where in it the entries belong, and the entries.
    """
    size, whole = math.prod(draw.shape), sharding.whole(draw.shape)

    def work(number: int) -> None:
        if stop:
            return
        start = number * BLOCK
        end = min(start + BLOCK, size)
        flat = [index for index in indices if index == whole]
        shared = [
            (index, offset, sizes, common)
            for index in indices
            if index != whole
            for offset, starts, sizes in boxes(draw.shape, start, end)
            if (common := _common(index, starts, sizes)) is not None
        ]
        if not flat and not shared:
            return
        block = _scratch()[: end - start]
        draw.fill(start, block)
        for index in flat:
            act(index, (slice(start, end),), block)
        for index, offset, sizes, (inside, place) in shared:
            box = block[offset : offset + math.prod(sizes)].reshape(sizes)
            act(index, place, box[inside])

    in_threads(work, math.ceil(size / BLOCK))


def _common(
    index: Index, starts: Sequence[int], sizes: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What a box and a part share, as slices of the box and of the part; None if nothing."""
    inside, place = [], []
    for (first, last), start, size in zip(index, starts, sizes, strict=True):
        low, high = max(first, start), min(last, start + size)
        if low >= high:
            return None
        inside.append(slice(low - start, high - start))
        place.append(slice(low - first, high - first))
    return tuple(inside), tuple(place)


def boxes(
    shape: Sequence[int], start: int, stop: int
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Cuts the entries start … stop-1 of a flattened array into boxes.

    Yields:
        The box's offset from `start`, the indices at which it begins, and its sizes.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield 0, (start,), (stop - start,)
        return
    inner = math.prod(shape[1:])
    row, skipped = divmod(start, inner)
    end = start
    if skipped:
        end = min(stop, (row + 1) * inner)
        for offset, starts, sizes in boxes(shape[1:], skipped, skipped + end - start):
            yield offset, (row, *starts), (1, *sizes)
        row += 1
    rows = (stop - end) // inner
    if rows > 0:
        zeros = (0,) * (len(shape) - 1)
        yield end - start, (row, *zeros), (rows, *shape[1:])
        end, row = end + rows * inner, row + rows
    for offset, starts, sizes in boxes(shape[1:], 0, stop - end):
        yield end - start + offset, (row, *starts), (1, *sizes)


def _foreign_parts(draw: Draw, layout: Layout | None) -> dict[Index, Float32Array]:
    """The parts of what another library draws, edited."""
    if not isinstance(draw.source, Foreign):
        raise TypeError("not another library's draw")
    value = of_keras.drawn(draw.source.initializer, draw.shape, layout)
    parts = {index: np.array(part, np.float32) for index, part in sharding.parts_of(value).items()}
    for index, part in parts.items():
        for edit in draw.edits:
            if callable(edit):
                edit(tuple(start for start, _ in index), part)
            else:
                part *= np.float32(edit)
    return parts


def _target(index: Index, part: AnyArray, shape: Sequence[int]) -> AnyArray:
    """A part as its places index it: flat if it is the whole."""
    return part.reshape(-1) if index == sharding.whole(shape) else part


def _cast(values: Float32Array, dtype: str) -> AnyArray:
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def _is_finite_as(dtype: str) -> Callable[[AnyArray], bool]:
    """A check that entries are finite once cast: minimum and maximum propagate NaN."""

    def is_finite(values: AnyArray) -> bool:
        if values.size == 0:
            return True
        extremes = _cast(np.asarray([values.min(), values.max()], np.float32), dtype)
        return bool(np.isfinite(extremes).all())

    return is_finite


_local = threading.local()


def _scratch() -> Float32Array:
    """Room for one block, of this thread."""
    if not hasattr(_local, "block"):
        _local.block = np.empty(BLOCK, np.float32)
    block: Float32Array = _local.block
    return block
