"""ResNets for CIFAR with enhanced initializers: `python examples/cifar_resnets.py --help`."""

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
    from common.summary import Record

#: The bases of the source's figures, each with what is held against it, and the other families.
INITIALIZERS = (
    "he_normal",
    "enhanced_he_normal:filter",
    "enhanced_he_normal:position",
    "he_uniform",
    "enhanced_he_uniform:filter",
    "enhanced_he_uniform:position",
    "asv_forward",
    "asv_backward",
    "depth_scaled",
    "signal_preserving",
)
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "data": "digits",
        "depth": 8,
        "width": 4,
        "epochs": 2,
        "seeds": 2,
        "batch_size": 32,
        "limit": 128,
        "augment": "shift",
        "learning_rate": 0.05,
        "initializers": ("he_normal", "enhanced_he_normal:position"),
    },
    "cpu": {
        "data": "digits",
        "depth": 8,
        "width": 16,
        "epochs": 12,
        "seeds": 3,
        "batch_size": 128,
        "augment": "shift",
        "learning_rate": 0.1,
        "initializers": INITIALIZERS,
    },
    "paper": {
        "data": "cifar10",
        "depth": 56,
        "width": 16,
        "epochs": 300,
        "seeds": 5,
        "batch_size": 128,
        "augment": "flip",
        "learning_rate": 0.1,
        "initializers": INITIALIZERS,
    },
}
#: Epochs of the ratio plot, as in the source.
FIRST_EPOCHS = 30
#: What it shows at most: in the first epochs a base may still be at the level of chance.
RATIOS = (0.5, 2.0)
EPILOG = """\
examples:
  python examples/cifar_resnets.py --out results/digits
  python examples/cifar_resnets.py --preset paper --out results/resnet56
  python examples/cifar_resnets.py --preset paper --precision mixed_bfloat16 --data-on-device \\
      --steps-per-execution 30 --out results/resnet56_gpu
  python examples/cifar_resnets.py --preset paper --depth 110 --data cifar100 --out results/c100
  python examples/cifar_resnets.py --data-dir FOLDER --limit 5000 \\
      --augment flip --no-batch-norm --learning-rate 0.01 --out results/folder
  python examples/cifar_resnets.py --initializers he_normal enhanced_he_normal:filter:2 \\
      --out results/concentration
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; see `study_options.main`."""
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = study_options.parser(
        __file__,
        "Trains residual networks for small images (He et al. 2016, section 4.2) with He's "
        "initializers and with those that give every filter its own variance, and compares how "
        "fast and how well they learn.",
        EPILOG,
    )
    study = parser.add_argument_group("study")
    study_options.add_data_options(study, PRESETS["cpu"]["data"])
    study_options.add_augment_option(study)
    study.add_argument(
        "--initializers",
        nargs="+",
        metavar="ID",
        help="ids of keras_varinit or Keras, kaiming_backward (2 / fan_out), and for the enhanced "
        "ones ID:GRANULARITY[:CONCENTRATION], as in enhanced_he_normal:position:2",
    )
    study_options.add_baseline_option(study, "the base of each, as he_uniform is")
    study.add_argument(
        "--depth", type=int, metavar="N", help="8, 14, 20, 32, 44, 56, 110 or another 6n + 2"
    )
    study.add_argument("--width", type=int, metavar="N", help="channels of the first stage")
    study.add_argument(
        "--shortcut", choices=("A", "B"), default="A",
        help="where the shape changes: A the identity with channels of zeros, B a 1×1 convolution "
        "(default: %(default)s)",
    )  # fmt: skip
    study.add_argument(
        "--no-batch-norm", dest="batch_norm", action="store_false",
        help="leave out batch normalization, which hides much of an initializer's effect",
    )  # fmt: skip
    study.add_argument(
        "--learning-rate", type=float, metavar="RATE",
        help="divided by 10 after half and after three quarters of the epochs; from 110 layers "
        "on, the first epoch has a tenth of it",
    )  # fmt: skip
    study.add_argument(
        "--weight-decay", type=float, default=1e-4, metavar="RATE", help="(default: %(default)s)"
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Trains every initializer with every seed, then prints and plots.

    Raises:
        UserError: An option, a package or the data is wrong.
    """
    _check(options)
    study_options.check_baseline(options)
    study_options.import_packages(options)
    from common import image_study, schemes
    from common.study import Study, study_cases

    options.initializers = schemes.check(options.initializers)
    images = image_study.load(options)
    decisive = ("depth", "width", "shortcut", "batch_norm", "learning_rate", "weight_decay")
    shared = study_options.record(options, (*image_study.DATA_OPTIONS, *decisive))
    study = Study("cifar_resnets", options.out, shared, options.restart)
    cases = study_cases(options.seeds, initializer=options.initializers)
    records = image_study.run(
        study, cases, lambda case, folder: train(case, folder, images, options), options
    )
    _report(options, images, records)


def _check(options: argparse.Namespace) -> None:
    if options.depth < 8 or (options.depth - 2) % 6:
        raise UserError(f"--depth {options.depth}: a ResNet has 6n + 2 layers: 8, 14, 20, ...")
    if options.width < 1:
        raise UserError(f"--width {options.width}: must be 1 or more.")
    if not 0 < options.learning_rate < float("inf"):
        raise UserError(f"--learning-rate {options.learning_rate}: must be above 0.")
    if not 0 <= options.weight_decay < float("inf"):
        raise UserError(f"--weight-decay {options.weight_decay}: must be 0 or more.")


def train(
    case: Settings,
    folder: pathlib.Path,
    images: Images,
    options: argparse.Namespace,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Does one training.

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
    from common import image_study, resnet, schemes

    import keras_varinit as kv

    model = resnet.build_resnet(
        images.x_train.shape[1:],
        images.num_classes,
        kernel_initializer="he_normal",
        depth=options.depth,
        width=options.width,
        batch_norm=options.batch_norm,
        shortcut=options.shortcut,
        weight_decay=options.weight_decay,
    )
    kv.initialize(model, schemes.make(case["initializer"]), seed=case["seed"])
    steps = len(image_study.batches(images, options, case["seed"]))
    return image_study.train(
        model,
        images,
        options,
        optimizer=keras.optimizers.SGD(schedule(options, steps), momentum=0.9),
        seed=case["seed"],
        label=f"{case['initializer']}, seed {case['seed']}",
        folder=folder,
        callbacks=callbacks,
    )


def schedule(
    options: argparse.Namespace, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of He et al. (2016): 0.1, 0.01, 0.001, and 0.01 to warm up 110 layers.

    They warm up until the training error falls below 80 %, about 400 steps: here for an epoch.

    Args:
        options: With `epochs`, `depth` and `learning_rate`.
        steps: In an epoch.
    """
    import keras

    rate = options.learning_rate
    total = options.epochs * steps
    boundaries, rates = [total // 2, 3 * total // 4], [rate, rate / 10, rate / 100]
    if options.depth >= 110 and options.epochs > 2:
        boundaries, rates = [steps, *boundaries], [rate / 10, *rates]
    # Keras keeps the rate of before at the boundary itself, which is a step's number from 0.
    return keras.optimizers.schedules.PiecewiseConstantDecay([b - 1 for b in boundaries], rates)


def _report(options: argparse.Namespace, images: Images, records: Sequence[Record]) -> None:
    from common import image_study, schemes, study_plots, summary

    norm = "with" if options.batch_norm else "without"
    setting = (
        f"ResNet-{options.depth} (shortcut {options.shortcut}) {norm} batch normalization "
        f"on {images.name}"
    )
    groups = summary.by_setting(records, "initializer")
    baselines = {name: options.baseline or schemes.base(name) for name in groups}
    text = (
        f"{summary.comparison(records, baselines)}\n\n{setting}, "
        f"{image_study.scale(images, options)}."
    )
    over = summary.over_seeds(setting, options.seeds)
    study_plots.learning_curves(groups, options.epochs, over, options.out / "curves.png")
    plots = ["curves.png"]
    if _plot_ratios(groups, baselines, options, over):
        plots.append("ratios.png")
    image_study.report(text, options.out, plots)


def _plot_ratios(
    groups: dict[str, list[Record]],
    baselines: dict[str, str],
    options: argparse.Namespace,
    title: str,
) -> bool:
    """Writes accuracy ÷ accuracy of the base, seed by seed, as in the source's figures 4.*.1."""
    from common import study_plots

    compared = [base for base in groups if any(baselines[name] == base != name for name in groups)]
    if not compared:
        return False
    epochs = min(options.epochs, FIRST_EPOCHS)
    figure, panels = study_plots.axes_grid(len(compared), [f"base: {base}" for base in compared])
    numbers = {name: number for number, name in enumerate(groups)}
    for axes, base in zip(panels, compared, strict=True):
        for name, members in groups.items():
            if baselines[name] == base != name:
                each, mean = study_plots.ratios(members, groups[base], epochs)
                x = range(1, epochs + 1)
                study_plots.draw_range(axes, x, each, name, numbers[name], mean)
        axes.axhline(1, color="0.4", linewidth=1)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, RATIOS[0]), min(high, RATIOS[1]))
        study_plots.by_epoch(axes, f"ratio to {base}")
    study_plots.save(
        figure, f"Validation accuracy ÷ that of the base\n{title}", options.out / "ratios.png"
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
