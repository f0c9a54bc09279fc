"""The command line that all studies share, and what it sets up."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from common import app, data_options, presets
from common.errors import UserError, require
from common.quiet import import_keras

# Read when torch is imported: its threads wait actively by default, which slows a machine with
# few cores down many times over as soon as anything else runs on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: What every app has: a try-out of seconds, what two CPU cores do, and the source's own setting.
PRESETS = ("smoke", "cpu", "paper")


def parser(file: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the options of every study; each study adds its own.

    Args:
        file: The app's, which messages name it by.
        description: What the study does.
        epilog: Examples.
    """
    result = argparse.ArgumentParser(
        prog=pathlib.Path(file).name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    presets.add_option(result, PRESETS)
    result.add_argument("--epochs", type=_whole, metavar="N")
    result.add_argument("--seeds", type=_whole, metavar="N", help="trainings with 0 to N-1")
    result.add_argument("--batch-size", type=_whole, metavar="N")
    result.add_argument(
        "--limit", type=_whole, metavar="N", help="use at most N images of each split"
    )
    result.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="DIR",
        help="folder of results.json, history.csv and the plots; given again, a stopped study "
        "goes on",
    )  # fmt: skip
    result.add_argument("--restart", action="store_true", help="drop the results in --out")
    group = result.add_argument_group("machine")
    group.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        default="float32",
        help="(default: %(default)s)",
    )
    group.add_argument(
        "--steps-per-execution", type=_whole, default=1, metavar="N",
        help="batches in one compiled call, which keeps a GPU busy (TensorFlow, JAX; default: "
        "%(default)s)",
    )  # fmt: skip
    group.add_argument("--xla", action="store_true", help="compile with XLA (TensorFlow, JAX)")
    group.add_argument(
        "--distribute", action="store_true",
        help="split each batch over all devices: keras.distribution with JAX, "
        "tf.distribute.MirroredStrategy with TensorFlow",
    )  # fmt: skip
    return result


def add_data_options(group: Any, default: str) -> None:
    """Adds `--data`, `--data-dir` and `--image-size`.

    Args:
        group: A parser or a group of its options.
        default: The data set's name.
    """
    group.add_argument(
        "--data", metavar="NAME", help=f"{data_options.DATA} (default: by preset, or {default})"
    )
    group.add_argument("--data-dir", metavar="DIR", help=data_options.DATA_DIR)
    group.set_defaults(default_data=default)
    group.add_argument("--image-size", type=_whole, metavar="PIXELS")
    group.add_argument(
        "--data-on-device", action="store_true",
        help="hold all images on the device and augment them there, which keeps a GPU busy",
    )  # fmt: skip


def add_augment_option(group: Any) -> None:
    """Adds `--augment`.

    Args:
        group: A parser or a group of its options.
    """
    group.add_argument(
        "--augment",
        choices=("none", "shift", "flip"),
        help="shift training images by up to an eighth of their side; flip also mirrors half of "
        "them (default: by preset)",
    )


def add_baseline_option(group: Any, default: str) -> None:
    """Adds `--baseline`.

    Args:
        group: A parser or a group of its options.
        default: What the others are compared with where the option is left out.
    """
    group.add_argument(
        "--baseline", metavar="ID",
        help=f"the one of --initializers that the others are compared with (default: {default})",
    )  # fmt: skip


def check_baseline(options: argparse.Namespace) -> None:
    """Refuses a baseline that is not trained.

    Raises:
        UserError: It is not among `--initializers`.
    """
    if options.baseline is not None and options.baseline not in options.initializers:
        raise UserError(
            f"--baseline {options.baseline}: not among --initializers "
            f"{' '.join(options.initializers)}."
        )


def parse(
    argument_parser: argparse.ArgumentParser,
    settings: presets.Presets,
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Reads the command line; a preset fills in what it does not have.

    Args:
        argument_parser: From `parser`.
        settings: Defaults by the preset's name.
        argv: The arguments; `None` takes those of the process.

    Raises:
        UserError: The options of the data contradict each other, or the folder holds no images.
    """
    options = presets.parse(argument_parser, settings, argv)
    if hasattr(options, "default_data"):
        data_options.settle(options, options.default_data)
        del options.default_data
    return options


def record(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options that decide a study's results: `names` and those of every study.

    The number of seeds is not among them: a study may get more of them later.
    """
    common = ("epochs", "batch_size", "limit", "precision")
    return {name: getattr(options, name) for name in (*common, *names)}


@contextlib.contextmanager
def set_up(options: argparse.Namespace) -> Iterator[None]:
    """Sets the precision and the distribution; models are to be built and trained inside.

    TensorFlow's distribution does not survive `keras.utils.clear_session()` inside.

    Raises:
        UserError: `--distribute` under PyTorch, or with a batch that devices cannot share.
    """
    import keras

    keras.config.set_dtype_policy(options.precision)
    if not options.distribute:
        yield
        return
    backend = keras.config.backend()
    if backend == "jax":
        devices = keras.distribution.list_devices()
        _check_batch(options.batch_size, len(devices))
        distribution = keras.distribution.DataParallel(devices=devices)
        with distribution.scope():
            yield
    elif backend == "tensorflow":
        tensorflow = require("tensorflow", "tensorflow", "for --distribute")
        found = tensorflow.config.list_logical_devices
        devices = [device.name for device in found("GPU") or found("CPU")]
        strategy = tensorflow.distribute.MirroredStrategy(devices)
        _check_batch(options.batch_size, strategy.num_replicas_in_sync)
        with strategy.scope():
            yield
    else:
        raise UserError("--distribute needs the TensorFlow or the JAX backend: set KERAS_BACKEND.")


def compile_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """`steps_per_execution` and `jit_compile` for `model.compile`.

    Without `--xla` Keras decides, which leaves XLA out where TensorFlow has no more than CPUs.
    """
    return {
        "steps_per_execution": options.steps_per_execution,
        "jit_compile": True if options.xla else "auto",
    }


def import_packages(options: argparse.Namespace) -> None:
    """Imports what every study needs, without TensorFlow's start-up messages.

    Raises:
        UserError: A package is missing, Keras does not start, or its backend lacks an option.
    """
    for package in ("matplotlib", "tqdm", "scipy"):
        require(package, package, "for this example")
    keras = import_keras()

    if keras.config.backend() == "torch":
        for name, given in (
            ("--steps-per-execution", options.steps_per_execution > 1),
            ("--xla", options.xla),
        ):
            if given:
                raise UserError(
                    f"{name} is not for PyTorch: leave it out, or set KERAS_BACKEND to tensorflow "
                    "or jax."
                )
    # It warns of retracing, which a study of many models cannot do without.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    require("keras_varinit", "keras-varinit", "for its initializers")


def main(
    argument_parser: argparse.ArgumentParser,
    settings: presets.Presets,
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a study with the options of its command line; a user's mistake becomes a line.

    Args:
        argument_parser: From `parser`.
        settings: Defaults by the preset's name.
        run: The study.
        argv: The arguments; `None` takes those of the process.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 when stopped by the user.
    """
    return app.run(
        argument_parser.prog,
        lambda: run(parse(argument_parser, settings, argv)),
        "Stopped; the same command goes on from here.",
    )


def _check_batch(batch_size: int, devices: int) -> None:
    if batch_size % devices:
        raise UserError(f"--batch-size {batch_size} cannot be shared by {devices} devices.")


def _whole(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value
