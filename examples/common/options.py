"""The command line of the training example."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence

from common.errors import UserError

#: The usual choice of a ResNet, and one of each family of keras_varinit.
DEFAULT_INITIALIZERS = ("he_normal", "enhanced_he_normal", "asv_backward", "depth_scaled")

#: What `--smoke` puts in place of the defaults: every part runs, nothing is learned.
SMOKE = {"epochs": 2, "seeds": 1, "width": 4, "batch_size": 32, "limit": 320}

_EPILOG = """\
examples:
  python examples/train_resnet.py
  python examples/train_resnet.py --initializers he_normal asv_forward --no-batch-norm
  python examples/train_resnet.py --data cifar10 --depth 20 --epochs 30 \\
      --learning-rate 0.1 --augment flip --target-accuracy 0.8
  python examples/train_resnet.py --data-dir FOLDER --image-size 32
  KERAS_BACKEND=jax python examples/train_resnet.py --smoke

FOLDER holds train/<class>/*.png (or .jpg) and val/<class>/*.png (or test/<class>/*.png).
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
    parser = _parser()
    if parser.parse_known_args(argv)[0].smoke:
        parser.set_defaults(**SMOKE)
    options = parser.parse_args(argv)
    options.initializers = list(dict.fromkeys(options.initializers))
    if (options.depth - 2) % 6:
        below = options.depth - (options.depth - 2) % 6
        near = " or ".join(str(depth) for depth in (below, below + 6) if depth >= 8)
        raise UserError(
            f"--depth {options.depth}: a ResNet has 6n + 2 layers; the nearest is {near}."
        )
    _settle_data(options)
    return options


def _settle_data(options: argparse.Namespace) -> None:
    if options.data is None:
        options.data = "digits"
        if options.data_dir is not None:
            if not (pathlib.Path(options.data_dir).expanduser() / "train").is_dir():
                raise UserError(
                    f"--data-dir {options.data_dir}: there is no folder train in it. Name a data "
                    "set of TensorFlow Datasets with --data, or lay it out as the end of --help "
                    "says."
                )
            options.data = "folder"
    elif options.data == "digits" and options.data_dir is not None:
        raise UserError("--data digits comes with scikit-learn and takes no --data-dir.")


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
    group.add_argument(
        "--data",
        metavar="NAME",
        help="digits (8×8, part of scikit-learn; the default), folder, or the name of any image "
        "classification data set of TensorFlow Datasets: fashion_mnist, cifar10, cifar100, ...",
    )
    group.add_argument(
        "--data-dir",
        metavar="DIR",
        help="your images, laid out as below (alone or with --data folder), or where TensorFlow "
        "Datasets keeps its data",
    )
    group.add_argument(
        "--image-size",
        type=_whole(4),
        metavar="PIXELS",
        help="resize images to this side (default: as they are; 32 where their sizes differ)",
    )
    group.add_argument(
        "--limit",
        type=_whole(2),
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
        type=_whole(8),
        default=8,
        metavar="N",
        help="layers of the ResNet: 8, 14, 20, 26, ... (default: %(default)s)",
    )
    group.add_argument(
        "--width",
        type=_whole(1),
        default=16,
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
        "--epochs", type=_whole(1), default=20, metavar="N", help="(default: %(default)s)"
    )
    group.add_argument(
        "--seeds",
        type=_whole(1),
        default=3,
        metavar="N",
        help="trainings of each initializer, with the seeds 0 to N-1 (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size", type=_whole(1), default=128, metavar="N", help="(default: %(default)s)"
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
    group.add_argument(
        "--smoke",
        action="store_true",
        help="a try-out of seconds, as with "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SMOKE.items()),
    )


def _whole(least: int) -> Callable[[str], int]:
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
