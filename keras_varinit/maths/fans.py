"""Fans, filter axes and exact connection counts of every kind of layer, from plain numbers.

A *connection* is a pair (input entry, output entry) joined by a kernel entry. With M inputs, M'
outputs and ε connections, ε/M' is the mean fan-in and ε/M the mean fan-out; these account for
stride, padding and dilation.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

Spatial = Sequence[int | None]

Pads = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Fans:
    """Counts of one kernel in one layer; the fields are those of `LayerContext`."""

    fan_in: float
    fan_out: float
    filter_axes: tuple[int, ...]
    spatial_axes: tuple[int, ...] = ()
    stride: int = 1
    connections: int | None = None
    input_size: int | None = None
    output_size: int | None = None


def dense(shape: Sequence[int], positions: int | None = 1) -> Fans:
    """A matrix (in, out), applied at each of `positions` positions; None if unknown."""
    fan_in, fan_out = shape
    return _with_counts(
        Fans(fan_in, fan_out, filter_axes=(1,)),
        None if positions is None else positions * fan_in * fan_out,
        None if positions is None else positions * fan_in,
        None if positions is None else positions * fan_out,
    )


def einsum(
    equation: str, kernel: Sequence[int], inputs: Spatial = (), *, kernel_first: bool = False
) -> Fans:
    """An einsum "input,kernel->output", contracted over all letters that the output lacks.

    A letter in all three operands gives each of its values a kernel of its own. A letter in input
    and output only is a position, where the kernel is reused. A repeated letter in the input reads
    the diagonal; other entries reach no output.

    Args:
        equation: The subscripts.
        kernel: Shape of the kernel.
        inputs: Shape of the input; () if unknown.
        kernel_first: Whether the kernel is the first operand.

    Raises:
        ValueError: if the equation is malformed or does not fit the shapes.
    """
    try:
        (data, weights), output = subscripts(equation, (inputs or None, kernel), kernel_first)
        in_data, in_kernel = _sizes(data, inputs or None), _sizes(weights, kernel)
        for letter in in_data.keys() & in_kernel.keys():
            if in_data[letter] not in (None, in_kernel[letter]):
                raise ValueError(f"{letter!r} has sizes {in_data[letter]} and {in_kernel[letter]}")
    except ValueError as error:
        raise ValueError(f"the einsum pattern {equation!r} cannot be read: {error}") from None
    sizes = {**in_data, **in_kernel}

    def product(letters: Iterable[str]) -> int:
        return math.prod(sizes.get(letter) or 1 for letter in letters)

    summed = sizes.keys() - {*output}
    diagonal = {letter for letter in in_data if data.count(letter) > 1}
    beside = product(letter for letter in diagonal for _ in range(data.count(letter) - 1))
    reached = product(in_kernel.keys() - in_data.keys())
    fans = Fans(
        fan_in=product(summed),
        fan_out=reached / beside if diagonal else reached,
        filter_axes=tuple(axis for axis, letter in enumerate(weights) if letter in output),
    )
    # An axis of size 1 in the kernel has no other size in an input whose shape is not known.
    if any(sizes[letter] is None for letter in {*summed, *diagonal} - {*weights}):
        return fans
    entries = product(in_data.keys() & {*in_kernel, *summed, *diagonal}) * beside
    outputs = product({*in_kernel, *diagonal} & {*output})
    return _with_counts(fans, product(summed) * outputs, entries, outputs)


def subscripts(
    equation: str, shapes: tuple[Spatial | None, Spatial], kernel_first: bool = False
) -> tuple[list[list[str]], list[str]]:
    """Names of the axes of the input, of the kernel and of the output.

    Axes of an ellipsis are numbered from the right, as in broadcasting.

    Raises:
        ValueError: if the equation is malformed or does not fit the shapes.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != 2:
        raise ValueError(f"it has {len(operands)} operands, not an input and a kernel")
    for part in (*operands, right):
        if not re.fullmatch(r"[a-zA-Z]*(\.\.\.)?[a-zA-Z]*", part):
            raise ValueError(f"{part!r} is not letters and at most one ellipsis")
    if kernel_first:
        operands.reverse()
    axes = []
    for part, shape in zip(operands, shapes, strict=True):
        before, dots, after = part.partition("...")
        hidden = 0 if shape is None else len(shape) - len(before) - len(after)
        if hidden < 0 or (hidden and not dots):
            raise ValueError(f"{part!r} does not match a shape {shape}")
        axes.append([*before, *(f"...{n}" for n in reversed(range(hidden))), *after])
    letters = [*axes[0], *axes[1]]
    hidden_axes = sorted({k for k in letters if k.startswith("...")}, reverse=True)
    if not arrow:
        once = (k for k in letters if letters.count(k) == 1 and k not in hidden_axes)
        return axes, [*hidden_axes, *sorted(once)]
    named = right.replace("...", "")
    if len({*named}) < len(named) or not {*named} <= {*letters}:
        raise ValueError(f"the output {right!r} repeats a letter or has one that no operand has")
    if hidden_axes and "..." not in right:
        raise ValueError(f"the output {right!r} lacks the ellipsis")
    before, _, after = right.partition("...")
    return axes, [*before, *hidden_axes, *after]


def _sizes(axes: Sequence[str], shape: Spatial | None) -> dict[str, int | None]:
    """The size of each letter of an operand, without axes of size 1, which are broadcast."""
    sizes: dict[str, int | None] = {}
    for letter, size in zip(axes, shape or [None] * len(axes), strict=True):
        if size is not None and sizes.setdefault(letter, size) not in (None, size):
            raise ValueError(f"{letter!r} has sizes {sizes[letter]} and {size}")
        sizes[letter] = size or sizes.get(letter)
    return {letter: size for letter, size in sizes.items() if size != 1}


def embedding(shape: Sequence[int]) -> Fans:
    """A table (vocabulary, dimension): one row is looked up, so each output reads one entry."""
    return _with_counts(Fans(1, shape[1], filter_axes=(0,)), shape[1], 1, shape[1])


def recurrent(shape: Sequence[int], gates: int) -> Fans:
    """A kernel or recurrent kernel (rows, gates·units), with gates packed on the last axis."""
    fan_in, fan_out = shape[0], shape[1] // gates
    return _with_counts(Fans(fan_in, fan_out, filter_axes=(1,)), fan_in * fan_out, fan_in, fan_out)


def conv(
    shape: Sequence[int],
    spatial: Spatial,
    *,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    groups: int = 1,
    extra_pads: Pads | None = None,
) -> Fans:
    """A convolution with kernel (*k, in/groups, out).

    `spatial` is the map's size *before* `extra_pads`, the zeros that padding layers add.
    """
    *window, in_per_group, out = shape
    taps = math.prod(window)
    fans = Fans(
        fan_in=taps * in_per_group,
        fan_out=taps * out // groups,
        filter_axes=(len(window) + 1,),
        spatial_axes=tuple(range(len(window))),
        stride=math.prod(strides),
    )
    overlap, positions = _conv_overlap(window, spatial, strides, padding, dilation, extra_pads)
    if overlap is None or positions is None:
        return fans
    inputs = math.prod(n for n in spatial if n is not None)
    return _with_counts(
        fans, overlap * in_per_group * out, inputs * in_per_group * groups, positions * out
    )


def depthwise(
    shape: Sequence[int],
    spatial: Spatial,
    *,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    extra_pads: Pads | None = None,
) -> Fans:
    """A depthwise convolution with kernel (*k, in, multiplier), one filter per pair of the two."""
    *window, channels, multiplier = shape
    taps = math.prod(window)
    fans = Fans(
        fan_in=taps,
        fan_out=taps * multiplier,
        filter_axes=(len(window), len(window) + 1),
        spatial_axes=tuple(range(len(window))),
        stride=math.prod(strides),
    )
    overlap, positions = _conv_overlap(window, spatial, strides, padding, dilation, extra_pads)
    if overlap is None or positions is None:
        return fans
    inputs = math.prod(n for n in spatial if n is not None)
    filters = channels * multiplier
    return _with_counts(fans, overlap * filters, inputs * channels, positions * filters)


def conv_transpose(
    shape: Sequence[int],
    spatial: Spatial,
    out_spatial: Spatial,
    *,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
) -> Fans:
    """A transposed convolution with kernel (*k, out, in).

    It is the adjoint of a convolution from the output map to the input map and has the same
    connections. Zeros that padding layers add to the *input* map count as inputs.
    """
    *window, out, channels = shape
    taps = math.prod(window)
    fans = Fans(
        fan_in=taps * channels / math.prod(strides),
        fan_out=taps * out,
        filter_axes=(len(window),),
        spatial_axes=tuple(range(len(window))),
    )
    if any(n is None for n in (*spatial, *out_spatial)):
        return fans
    overlap = 1
    for k, n, m, s, d in zip(window, spatial, out_spatial, strides, dilation, strict=True):
        if n is None or m is None:
            return fans
        low = transposed_padding(n, m, k, s, d, padding)
        overlap *= _taps_inside(m, k, s, d, low, n)
    inputs = math.prod(n for n in spatial if n is not None)
    outputs = math.prod(n for n in out_spatial if n is not None)
    return _with_counts(fans, overlap * channels * out, inputs * channels, outputs * out)


def transposed_padding(inputs: int, outputs: int, k: int, s: int, d: int, padding: str) -> int:
    """Entries that a transposed convolution computes before its output and crops."""
    made = (inputs - 1) * s + (k - 1) * d + 1
    return max(made - outputs, 0) // 2 if padding == "same" else 0


def _with_counts(
    fans: Fans, connections: int | None, input_size: int | None, output_size: int | None
) -> Fans:
    return dataclasses.replace(
        fans, connections=connections, input_size=input_size, output_size=output_size
    )


def _conv_overlap(
    window: Sequence[int],
    spatial: Spatial,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    extra_pads: Pads | None,
) -> tuple[int | None, int | None]:
    """∏ over dimensions of Σ_j overlap(j), and the number of output positions."""
    pads = extra_pads or [(0, 0)] * len(window)
    overlap = positions = 1
    for k, n, s, d, (before, after) in zip(window, spatial, strides, dilation, pads, strict=True):
        if n is None:
            return None, None
        low, outputs = padding_and_outputs(n + before + after, k, s, d, padding)
        overlap *= _taps_inside(n, k, s, d, low + before, outputs)
        positions *= outputs
    return overlap, positions


def padding_and_outputs(n: int, k: int, s: int, d: int, padding: str) -> tuple[int, int]:
    """Zeros that the layer adds before `n` entries, and its number of outputs."""
    reach = (k - 1) * d + 1
    if padding == "same":
        outputs = -(-n // s)
        return max((outputs - 1) * s + reach - n, 0) // 2, outputs
    if padding == "causal":
        return reach - 1, -(-n // s)
    return 0, (n - reach) // s + 1


def _taps_inside(n: int, k: int, s: int, d: int, low: int, outputs: int) -> int:
    """Σ_j overlap(j): pairs (output j, tap a) whose input j·s + a·d - low lies in [0, n)."""
    total = 0
    for tap in range(k):
        shift = tap * d - low
        first = max(0, -(shift // s))
        last = min(outputs - 1, (n - 1 - shift) // s)
        total += max(0, last - first + 1)
    return total
