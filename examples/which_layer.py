"""Which layer kills my signal: `python examples/which_layer.py --help`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common import app
from common.errors import UserError, require
from common.options import whole
from common.quiet import import_keras

if TYPE_CHECKING:
    import keras

POOLS = {"average": "AveragePooling2D", "max": "MaxPooling2D"}

EPILOG = """\
examples:
  python examples/which_layer.py --pool max --initializer glorot_uniform
  python examples/which_layer.py --initializer signal_preserving --out results/mended
  KERAS_BACKEND=jax python examples/which_layer.py
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts, measures and plots.

    Args:
        argv: The arguments; `None` takes those of the process.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 when stopped by the user.
    """
    return app.run(pathlib.Path(__file__).name, lambda: report(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=pathlib.Path(__file__).name,
        description="Predicts, measures and plots the signal of a plain network, layer by layer: "
        "20 convolutions of 64 channels with ReLU on 32×32 images of white noise, pooled 2×2 "
        "after layers 5, 10 and 15.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pool", choices=list(POOLS), default="average", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--initializer", default="asv_forward", metavar="ID",
        help="an id of keras_varinit or Keras (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N",
        help="of the weights and of the images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=whole(1), default=32, metavar="N",
        help="images of white noise (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results"), metavar="DIR",
        help="where which_layer.png goes (default: %(default)s)",
    )  # fmt: skip
    return parser


def report(options: argparse.Namespace) -> None:
    """Prints the measured and predicted signal, and writes the plot.

    Args:
        options: From the command line.

    Raises:
        UserError: A package or an initializer is missing, or `--out` cannot be written to.
    """
    require("matplotlib", "matplotlib", "for the plot")
    import_keras()
    import numpy as np
    from common import initializers

    initializers.register()
    initializers.check([options.initializer], "--initializer")
    import keras_varinit as kv

    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written to: {error.strerror}.") from error
    model = plain_network(options.pool)
    kv.initialize(model, options.initializer, seed=options.seed)
    noise = np.random.default_rng(options.seed).standard_normal((options.examples, 32, 32, 3))
    signal = kv.measure_signal(model, noise.astype("float32"), verbose=0)
    print(signal)
    path = options.out / "which_layer.png"
    signal.plot(path)
    print(f"wrote {path}")


def plain_network(pool: str) -> keras.Model:
    """20 convolutions with three poolings between them.

    Args:
        pool: Which, a key of `POOLS`.
    """
    import keras

    x = inputs = keras.Input((32, 32, 3))
    for number in range(1, 21):
        name = f"conv_{number}"
        x = keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=name)(x)
        if number in (5, 10, 15):
            x = getattr(keras.layers, POOLS[pool])(2, name=f"pool_{number}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))


if __name__ == "__main__":
    sys.exit(main())
