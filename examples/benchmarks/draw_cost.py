"""What one draw costs beside Keras's HeNormal: `python examples/benchmarks/draw_cost.py --help`.

Every initializer of keras_varinit draws a kernel right after `HeNormal` has drawn one, again and
again in one process, so that whatever else the machine does falls on both. The ratio of each pair
is what the table shows. A time ends when an entry of the kernel can be read, so work that a backend
queues is included.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

import keras_varinit as kv

INITIALIZERS: dict[str, Callable[[], keras.initializers.Initializer]] = {
    "ASVForward": lambda: kv.ASVForward(seed=1),
    "ASVForward, truncated": lambda: kv.ASVForward("truncated_normal", seed=1),
    "ASVForward, uniform": lambda: kv.ASVForward("uniform", seed=1),
    "ASVBackward": lambda: kv.ASVBackward(seed=1),
    "DepthScaled": lambda: kv.DepthScaled(seed=1),
    "Enhanced, position": lambda: kv.Enhanced("he_normal", "position", seed=1),
    "EnhancedHeNormal": lambda: kv.EnhancedHeNormal(seed=1),
    "EnhancedHeUniform": lambda: kv.EnhancedHeUniform(seed=1),
    "EnhancedGlorotNormal": lambda: kv.EnhancedGlorotNormal(seed=1),
    "EnhancedGlorotUniform": lambda: kv.EnhancedGlorotUniform(seed=1),
    "EnhancedLecunNormal": lambda: kv.EnhancedLecunNormal(seed=1),
    "EnhancedLecunUniform": lambda: kv.EnhancedLecunUniform(seed=1),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table.

    Args:
        argv: The arguments; `None` takes those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    shape = tuple(options.shape)
    print(_machine())
    print(f"kernel {' x '.join(map(str, shape))} in {keras.config.floatx()}, ", end="")
    print(f"{options.repeats} pairs each\n")
    print(f"{'initializer':<22} {'ms':>8} {'HeNormal ms':>12} {'ratio':>6} {'min - max':>14}")
    for name, make in INITIALIZERS.items():
        ours, keras_own = paired_times(
            make(), keras.initializers.HeNormal(seed=1), shape, options.repeats
        )
        ratios = [mine / other for mine, other in zip(ours, keras_own, strict=True)]
        print(
            f"{name:<22} {1e3 * statistics.median(ours):8.2f} "
            f"{1e3 * statistics.median(keras_own):12.2f} {statistics.median(ratios):6.2f} "
            f"{min(ratios):6.2f} - {max(ratios):5.2f}"
        )
    return 0


def paired_times(
    first: keras.initializers.Initializer,
    second: keras.initializers.Initializer,
    shape: tuple[int, ...],
    repeats: int,
) -> tuple[list[float], list[float]]:
    """Times two initializers in turn, after one draw of each that is not counted.

    Args:
        first: An initializer.
        second: The one to compare it with; which of the two goes first alternates.
        shape: Shape of the kernel.
        repeats: Number of pairs.

    Returns:
        Seconds of every draw of the first and of the second.
    """
    pair = (first, second)
    times: tuple[list[float], list[float]] = ([], [])
    for initializer in pair:
        seconds_of_a_draw(initializer, shape)
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            times[which].append(seconds_of_a_draw(pair[which], shape))
    return times


def seconds_of_a_draw(initializer: keras.initializers.Initializer, shape: tuple[int, ...]) -> float:
    """Draws a kernel and waits for its last entry.

    Args:
        initializer: What draws.
        shape: Shape of the kernel.

    Returns:
        Seconds that it took.
    """
    start = time.perf_counter()
    kernel = initializer(shape)
    float(keras.ops.convert_to_numpy(kernel[tuple(n - 1 for n in shape)]))
    return time.perf_counter() - start


def _machine() -> str:
    backend = keras.backend.backend()
    version = getattr(sys.modules.get(backend), "__version__", "?")
    return (
        f"keras_varinit {kv.__version__}, keras {keras.__version__}, {backend} {version}, "
        f"numpy {np.__version__}, Python {platform.python_version()}\n"
        f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Times a draw of each initializer beside one of Keras's HeNormal. "
        "KERAS_BACKEND picks the backend."
    )
    parser.add_argument(
        "--shape",
        type=_positive,
        nargs="+",
        default=[3, 3, 512, 512],
        metavar="N",
        help="shape of the kernel (default: 3 3 512 512)",
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        default=15,
        metavar="N",
        help="pairs of draws for each initializer (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
