"""The command line of the training example."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from common import data_options, presets
from common.errors import UserError

#: The usual choice of a ResNet, and one of each family of keras_varinit.
DEFAULT_INITIALIZERS = ("he_normal", "enhanced_he_normal", "asv_backward", "depth_scaled")

#: What two CPU cores do in minutes, and a try-out of seconds: every part runs, nothing is learned.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"epochs": 2, "seeds": 1, "width": 4, "batch_size": 32, "limit": 320},
    "cpu": {"epochs": 20, "seeds": 3, "width": 16, "batch_size": 128},
}

_EPILOG = """\
examples:
  python examples/train_resnet.py
  python examples/train_resnet.py --initializers he_normal asv_forward --no-batch-norm
  python examples/train_resnet.py --data cifar10 --depth 20 --epochs 30 \\
      --learning-rate 0.1 --augment flip --target-accuracy 0.8
  python examples/train_resnet.py --data-dir FOLDER --image-size 32
  KERAS_BACKEND=jax python examples/train_resnet.py --preset smoke
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line.

    Args:
        argv: The arguments; `None` takes those of the process.

    Returns:
        The options, checked as far as they can be without the data.

    Raises:
        UserError: When options contradict each other.
    """
    options = presets.parse(_parser(), PRESETS, argv)
    options.initializers = list(dict.fromkeys(options.initializers))
    if (options.depth - 2) % 6:
        below = options.depth - (options.depth - 2) % 6
        near = " or ".join(str(depth) for depth in (below, below + 6) if depth >= 8)
        raise UserError(
            f"--depth {options.depth}: a ResNet has 6n + 2 layers; the nearest is {near}."
        )
    data_options.settle(options, "digits")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a small ResNet with several weight initializers and seeds, and "
        "compares how fast and how well it learns.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_model_options(parser.add_argument_group("model"))
    _add_training_options(parser.add_argument_group("training"))
    _add_report_options(parser.add_argument_group("report"))
    return parser


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", metavar="NAME", help=f"{data_options.DATA} (default: digits)")
    group.add_argument("--data-dir", metavar="DIR", help=data_options.DATA_DIR)
    group.add_argument(
        "--image-size",
        type=whole(4),
        metavar="PIXELS",
        help="resize images to this side (default: as they are; 32 where their sizes differ)",
    )
    group.add_argument(
        "--limit",
        type=whole(2),
        metavar="N",
        help="use at most N training and N validation images (default: all)",
    )
    group.add_argument(
        "--augment",
        choices=("none", "shift", "flip"),
        default="none",
        help="shift training images by up to an eighth of their side; flip also mirrors half of "
        "them (default: %(default)s)",
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--initializers",
        nargs="+",
        metavar="ID",
        default=DEFAULT_INITIALIZERS,
        help="ids of keras_varinit or Keras to compare (default: "
        + " ".join(DEFAULT_INITIALIZERS)
        + ")",
    )
    group.add_argument(
        "--depth",
        type=whole(8),
        default=8,
        metavar="N",
        help="layers of the ResNet: 8, 14, 20, 26, ... (default: %(default)s)",
    )
    group.add_argument(
        "--width",
        type=whole(1),
        metavar="N",
        help="channels of its first stage (default: %(default)s)",
    )
    group.add_argument(
        "--no-batch-norm",
        dest="batch_norm",
        action="store_false",
        help="leave out batch normalization, which hides much of an initializer's effect",
    )


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--epochs", type=whole(1), default=20, metavar="N", help="(default: %(default)s)"
    )
    group.add_argument(
        "--seeds",
        type=whole(1),
        metavar="N",
        help="trainings of each initializer, with the seeds 0 to N-1 (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size", type=whole(1), default=128, metavar="N", help="(default: %(default)s)"
    )
    group.add_argument(
        "--optimizer",
        choices=("sgd", "adam"),
        default="sgd",
        help="sgd has a Nesterov momentum of 0.9 (default: %(default)s)",
    )
    group.add_argument(
        "--learning-rate",
        type=_number(0, None),
        default=0.01,
        metavar="RATE",
        help="the first step's; it falls to zero along a cosine (default: %(default)s)",
    )


def _add_report_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target-accuracy",
        type=_number(0, 1),
        default=0.95,
        metavar="SHARE",
        help="report the first epoch with this validation accuracy (default: %(default)s)",
    )
    group.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("results"),
        metavar="DIR",
        help="where history.csv, table.txt and curves.png go; files of an earlier call are "
        "replaced (default: %(default)s)",
    )
    presets.add_option(group, PRESETS)
    # The name that this app had for it.
    group.add_argument(
        "--smoke", action="store_const", const="smoke", dest="preset", help=argparse.SUPPRESS
    )


def whole(least: int) -> Callable[[str], int]:
    """A type of options: a whole number that is large enough.

    Args:
        least: The smallest one.
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return convert


def _number(above: float, most: float | None) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not above < value <= (float("inf") if most is None else most) or value == float("inf"):
            limit = "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"must be above {above}{limit}, got {text}")
        return value

    return convert
