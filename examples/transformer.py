"""Initializers in a small vision transformer: `python examples/transformer.py --help`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common import study_options
from common.errors import UserError

if TYPE_CHECKING:
    import keras
    from common.data import Images
    from common.study import Settings

BASELINE = "glorot_uniform"
INITIALIZERS = (
    BASELINE,
    "lecun_normal",
    "he_normal",
    "enhanced_glorot_uniform",
    "depth_scaled",
    "signal_preserving",
    "keras_before_3.15",
    "residual_scaled",
    "residual_scaled:zero",
    "mimetic",
)
_COMMON = {"data": "digits", "patch": 2, "batch_size": 64, "augment": "none"}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        **_COMMON, "blocks": 1, "width": 8, "epochs": 2, "seeds": 2, "limit": 128,
        "initializers": (BASELINE, "signal_preserving"),
    },
    "cpu": {
        **_COMMON, "blocks": 4, "width": 32, "epochs": 12, "seeds": 5,
        "initializers": INITIALIZERS,
    },
    "paper": {
        **_COMMON, "data": "cifar10", "patch": 4, "blocks": 6, "width": 192, "epochs": 100,
        "seeds": 5, "batch_size": 128, "augment": "flip", "initializers": INITIALIZERS,
    },
}  # fmt: skip
EPILOG = """\
examples:
  python examples/transformer.py --out results/transformer
  python examples/transformer.py --preset paper --out results/cifar10
  python examples/transformer.py --blocks 12 --initializers glorot_uniform signal_preserving \\
      --out results/deep

No source has this network; the preset paper is this project's choice of a larger one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; see `study_options.main`."""
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = study_options.parser(
        __file__,
        "Trains a pre-norm vision transformer with several initializers of all its kernels.",
        EPILOG,
    )
    study = parser.add_argument_group("study")
    study_options.add_data_options(study, PRESETS["cpu"]["data"])
    study_options.add_augment_option(study)
    study.add_argument(
        "--initializers", nargs="+", metavar="ID",
        help="ids of keras_varinit or Keras; keras_before_3.15 is glorot_uniform with the scale "
        "that attention had before Keras 3.15, residual_scaled:zero starts branches as zero",
    )  # fmt: skip
    study_options.add_baseline_option(study, BASELINE)
    study.add_argument("--blocks", type=int, metavar="N")
    study.add_argument("--width", type=int, metavar="N", help="of a token; divisible by 4 heads")
    study.add_argument("--patch", type=int, metavar="PIXELS", help="side of a token's square")
    study.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="RATE",
        help="of Adam; it falls to zero along a cosine (default: %(default)g)",
    )  # fmt: skip
    return parser


def run(options: argparse.Namespace) -> None:
    """Trains every initializer with every seed, then prints and plots.

    Raises:
        UserError: An option, a package or the data is wrong.
    """
    for name in ("blocks", "width", "patch", "learning_rate"):
        if not 0 < getattr(options, name) < float("inf"):
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: must be above 0."
            )
    if options.width % 4:
        raise UserError(f"--width {options.width}: four heads share it, so it must be 4, 8, 12, …")
    study_options.check_baseline(options)
    study_options.import_packages(options)
    from common import image_study, schemes, study_plots, summary
    from common.study import Study, study_cases

    options.initializers = schemes.check(options.initializers)
    images = image_study.load(options)
    size = images.x_train.shape[1]
    if size % options.patch:
        raise UserError(f"--patch {options.patch}: does not divide images of {size} pixels.")
    decisive = ("blocks", "width", "patch", "learning_rate")
    shared = study_options.record(options, (*image_study.DATA_OPTIONS, *decisive))
    study = Study("transformer", options.out, shared, options.restart)
    cases = study_cases(options.seeds, initializer=options.initializers)
    records = image_study.run(
        study, cases, lambda case, folder: train(case, folder, images, options), options
    )
    groups = summary.by_setting(records, "initializer")
    baseline = options.baseline or (BASELINE if BASELINE in groups else next(iter(groups)))
    setting = f"Vision transformer of {summary.counted(options.blocks, 'block')}, "
    setting += f"width {options.width}, {images.name}"
    text = (
        f"{summary.comparison(records, dict.fromkeys(groups, baseline))}\n\n{setting}, "
        f"{image_study.scale(images, options)}."
    )
    over = summary.over_seeds(setting, options.seeds)
    study_plots.learning_curves(groups, options.epochs, over, options.out / "curves.png")
    image_study.report(text, options.out, ["curves.png"])


def train(
    case: Settings,
    folder: pathlib.Path,
    images: Images,
    options: argparse.Namespace,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Does one training.

    Args:
        case: `initializer` and `seed`.
        folder: For what it needs to go on after a stop.
        images: What to learn.
        options: From the command line.
        callbacks: More of them.

    Returns:
        A record for `Study.run`.
    """
    import keras
    from common import image_study, schemes, vision_transformer

    import keras_varinit as kv

    model = vision_transformer.build(
        images.x_train.shape[1:], images.num_classes, options.blocks, options.width, options.patch
    )
    kv.initialize(model, schemes.make(case["initializer"]), seed=case["seed"])
    steps = len(image_study.batches(images, options, case["seed"]))
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.epochs * steps)
    return image_study.train(
        model,
        images,
        options,
        optimizer=keras.optimizers.Adam(rate),
        seed=case["seed"],
        label=f"{case['initializer']}, seed {case['seed']}",
        folder=folder,
        callbacks=callbacks,
    )


if __name__ == "__main__":
    sys.exit(main())
