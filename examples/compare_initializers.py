"""Compares initializers on a model of keras.applications: run it with `--help`."""

from __future__ import annotations

import argparse
import inspect
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from common import study_options
from common.errors import UserError

if TYPE_CHECKING:
    import keras
    from common.data import Images
    from common.study import Settings
    from common.summary import Record

#: The model's own initializers, as keras.applications sets them.
OWN = "own"
INITIALIZERS = (OWN, "he_normal", "asv_backward", "signal_preserving")
#: Sides to try, from the smallest, for images that the model does not take as they are.
SIZES = (32, 64, 71, 75, 96, 128, 160, 224, 331)
#: Lines of each list before the training.
MOST_LINES = 5

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "model": "MobileNet",
        "epochs": 1,
        "seeds": 1,
        "batch_size": 16,
        "limit": 32,
        "augment": "none",
        "learning_rate": 1e-3,
        "initializers": (OWN, "asv_backward"),
    },
    "cpu": {
        "model": "MobileNet",
        "epochs": 10,
        "seeds": 3,
        "batch_size": 64,
        "augment": "shift",
        "learning_rate": 1e-3,
        "initializers": INITIALIZERS,
    },
    "paper": {
        "model": "ResNet50",
        "data": "cifar10",
        "epochs": 100,
        "seeds": 5,
        "batch_size": 128,
        "augment": "flip",
        "learning_rate": 1e-3,
        "initializers": INITIALIZERS,
    },
}
EPILOG = f"""\
{OWN} stands for the initializers that the model has from keras.applications.

examples:
  python examples/compare_initializers.py --out results/mobilenet
  python examples/compare_initializers.py --model VGG16 --data-dir FOLDER \\
      --image-size 64 --initializers {OWN} he_normal asv_forward --learning-rate 1e-4 \\
      --out results/vgg
  python examples/compare_initializers.py --preset paper --model DenseNet121 --out results/densenet
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; see `study_options.main`."""
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = study_options.parser(
        __file__,
        "Compares initializers on any model of keras.applications and any folder or data set of "
        "images. Before each training it prints what keras_varinit.lint finds, and the layers "
        "whose predicted signal is furthest from 1.",
        EPILOG,
    )
    study = parser.add_argument_group("study")
    study.add_argument(
        "--model", metavar="NAME", help="a function of keras.applications, as in MobileNetV2"
    )
    study_options.add_data_options(study, "digits")
    study_options.add_augment_option(study)
    study.add_argument(
        "--initializers",
        nargs="+",
        metavar="ID",
        help=f"{OWN}, or ids of keras_varinit or Keras; enhanced_he_normal:position and the like. "
        "Differences are taken to the first",
    )
    study.add_argument(
        "--learning-rate", type=float, metavar="RATE", help="of Adam; it falls along a cosine"
    )
    study.add_argument(
        "--batch-norm-momentum", type=float, default=0.9, metavar="SHARE",
        help="of the moving averages; the 0.99 of most models lags behind in trainings of a few "
        "hundred steps (default: %(default)s)",
    )  # fmt: skip
    return parser


def run(options: argparse.Namespace) -> None:
    """Inspects the model, trains every initializer with every seed, then prints and plots.

    Raises:
        UserError: An option, a package or the data is wrong, or the model takes no such images.
    """
    if not 0 < options.learning_rate < float("inf"):
        raise UserError(f"--learning-rate {options.learning_rate}: must be above 0.")
    if not 0 <= options.batch_norm_momentum < 1:
        raise UserError(
            f"--batch-norm-momentum {options.batch_norm_momentum}: must be 0 or more and below 1."
        )
    study_options.import_packages(options)
    from common import image_study, schemes
    from common.study import Study, study_cases

    constructor = find_model(options.model)
    schemes.check([name for name in options.initializers if name != OWN])
    options.initializers = list(dict.fromkeys(options.initializers))
    images = _fitting(constructor, options)
    decisive = ("model", "learning_rate", "batch_norm_momentum")
    shared = study_options.record(options, (*image_study.DATA_OPTIONS, *decisive))
    study = Study("compare_initializers", options.out, shared, options.restart)
    cases = study_cases(options.seeds, initializer=options.initializers)
    records = image_study.run(
        study, cases, lambda case, folder: train(case, folder, images, options), options
    )
    _report(options, images, records)


def find_model(name: str) -> Callable[..., keras.Model]:
    """The function of keras.applications.

    Raises:
        UserError: There is none with that name.
    """
    import difflib

    from keras import applications

    known = [n for n in dir(applications) if n[0].isupper() and callable(getattr(applications, n))]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"--model {name}: not in keras.applications. There is {', '.join(close)}.")
    return getattr(applications, name)


def build(
    constructor: Callable[..., keras.Model],
    input_shape: tuple[int, int, int],
    num_classes: int,
    batch_norm_momentum: float,
) -> keras.Model:
    """Builds a model without weights for standardized images; it ends in logits where it can.

    Args:
        constructor: From keras.applications.
        input_shape: Height, width and channels.
        num_classes: How many outputs.
        batch_norm_momentum: Of every batch normalization.

    Raises:
        ValueError: The model takes no such images.
    """
    import keras

    arguments = {"weights": None, "input_shape": input_shape, "classes": num_classes}
    settable = inspect.signature(constructor).parameters
    # Standardized images need no rescaling.
    extra = {"classifier_activation": None, "include_preprocessing": False}
    arguments |= {name: value for name, value in extra.items() if name in settable}
    model = constructor(**arguments)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = batch_norm_momentum
        elif isinstance(layer, keras.layers.Rescaling):
            layer.scale, layer.offset = 1.0, 0.0
    return model


def _fitting(constructor: Callable[..., keras.Model], options: argparse.Namespace) -> Images:
    """Images of the size named, else of their own if the model takes it, else of its smallest."""
    import dataclasses

    import keras
    import numpy as np
    from common import image_study

    images = image_study.load(options)
    channels = images.x_train.shape[-1]
    sides = [images.x_train.shape[1]]
    if options.image_size is None:
        sides += [side for side in SIZES if side > sides[0]]
    for side in sides:
        try:
            build(constructor, (side, side, 3), images.num_classes, options.batch_norm_momentum)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            continue
        break
    else:
        raise UserError(
            f"--model {options.model} does not take images of {sides[-1]}×{sides[-1]}: {reason} "
            "Set --image-size."
        )
    keras.utils.clear_session()
    if side != sides[0]:
        options.image_size = side
        print(f"{options.model} takes no images of {sides[0]}×{sides[0]}: resized.")
        images = image_study.load(options)
    if channels == 1:
        grey = {part: np.repeat(getattr(images, part), 3, -1) for part in ("x_train", "x_val")}
        images = dataclasses.replace(images, **grey)
    return images


def train(
    case: Settings,
    folder: pathlib.Path,
    images: Images,
    options: argparse.Namespace,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Does one training; with the seed 0, tells first what the initialization is like.

    Args:
        case: `initializer` and `seed`, which decides weights, order and augmentation.
        folder: For what it needs to go on after a stop.
        images: What to learn.
        options: From the command line.
        callbacks: More of them.

    Returns:
        A record for `Study.run`.
    """
    import keras
    from common import image_study, schemes

    import keras_varinit as kv

    model = build(
        find_model(options.model),
        images.x_train.shape[1:],
        images.num_classes,
        options.batch_norm_momentum,
    )
    if case["initializer"] != OWN:
        kv.initialize(model, schemes.make(case["initializer"]), seed=case["seed"])
    if case["seed"] == 0:
        print(f"\n{options.model}, {case['initializer']}\n{inspection(model)}", flush=True)
    steps = options.epochs * len(image_study.batches(images, options, case["seed"]))
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    last = getattr(model.layers[-1], "activation", None)
    return image_study.train(
        model,
        images,
        options,
        optimizer=keras.optimizers.Adam(schedule),
        seed=case["seed"],
        label=f"{case['initializer']}, seed {case['seed']}",
        folder=folder,
        from_logits=getattr(last, "__name__", "linear") != "softmax",
        callbacks=callbacks,
    )


def inspection(model: keras.Model) -> str:
    """What `keras_varinit.lint` finds, and where the predicted signal is furthest from 1.

    Args:
        model: Any built one.
    """
    import keras_varinit as kv

    findings = sorted(kv.lint(model), key=lambda finding: finding.rule)
    lines = [f"lint: {len(findings)} findings"]
    for rule, members in itertools.groupby(findings, key=lambda finding: finding.rule):
        found = list(members)
        lines += [f"  {finding}" for finding in found[:MOST_LINES]]
        if len(found) > MOST_LINES:
            lines.append(f"  ... and {len(found) - MOST_LINES} more of {rule}")
    predicted = kv.analyze(model).predicted
    for side, what in (("forward", "output"), ("backward", "gradient")):
        known = [
            (path, value)
            for path, signal in predicted.items()
            if (value := getattr(signal, side)) is not None
        ]
        worst = sorted(known, key=lambda item: -_distance(item[1]))[:MOST_LINES]
        lines.append(f"predicted second moment of the {what}, furthest from 1:")
        lines += [f"  {value:<9.3g} {path}" for path, value in worst]
        if len(known) < len(predicted):
            lines.append(f"  not known for {len(predicted) - len(known)} kernels")
    return "\n".join(lines)


def _distance(value: float) -> float:
    """From 1, in orders of magnitude."""
    return abs(math.log10(value)) if 0 < value < math.inf else math.inf


def _report(options: argparse.Namespace, images: Images, records: Sequence[Record]) -> None:
    from common import image_study, study_plots, summary

    groups = summary.by_setting(records, "initializer")
    side = images.x_train.shape[1]
    setting = f"{options.model} on {images.name} ({side}×{side})"
    text = (
        f"{summary.comparison(records, dict.fromkeys(groups, options.initializers[0]))}\n\n"
        f"{setting}, {image_study.scale(images, options)}."
    )
    over = summary.over_seeds(setting, options.seeds)
    study_plots.learning_curves(groups, options.epochs, over, options.out / "curves.png")
    image_study.report(text, options.out, ("curves.png",))


if __name__ == "__main__":
    sys.exit(main())
