"""Plain networks with ASV initialization: `python examples/asv_networks.py --help`."""

from __future__ import annotations

import argparse
import pathlib
import statistics
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

#: The source's names of the five initializations, with the ids of what they are here.
INITIALIZERS = {
    "xavier": "glorot_normal",
    "kaiming_forward": "he_normal",
    "kaiming_backward": "kaiming_backward",
    "asv_forward": "asv_forward",
    "asv_backward": "asv_backward",
}
OPTIMIZERS = ("SGD", "Adadelta", "Adagrad", "RMSprop", "Adam")
#: The four of the source.
LEARNING_RATES = (1e-6, 1e-5, 1e-4, 1e-3)
#: What differences are taken to.
BASELINE = "kaiming_forward"

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "data": "digits",
        "image_size": 32,
        "network": "F34",
        "width": 2,
        "epochs": 1,
        "seeds": 1,
        "batch_size": 32,
        "limit": 64,
        "augment": "none",
        "initializers": ("kaiming_forward", "asv_backward"),
        "optimizers": ("Adam",),
        "learning_rates": (1e-3,),
    },
    "cpu": {
        "data": "digits",
        "image_size": 32,
        "network": "F34",
        "width": 8,
        "epochs": 15,
        "seeds": 3,
        "batch_size": 64,
        "augment": "none",
        "initializers": tuple(INITIALIZERS),
        "optimizers": ("Adam",),
        "learning_rates": (1e-4, 1e-3),
    },
    "paper": {
        "data": "cars196",
        "image_size": 224,
        "network": "F34",
        "width": 64,
        "epochs": 1000,
        "seeds": 3,
        "batch_size": 64,
        "augment": "none",
        "initializers": tuple(INITIALIZERS),
        "optimizers": OPTIMIZERS,
        "learning_rates": LEARNING_RATES,
    },
}
EPILOG = """\
examples:
  python examples/asv_networks.py --out results/f34
  python examples/asv_networks.py --width 16 --image-size 64 --optimizers SGD Adam \\
      --learning-rates 1e-6 1e-5 1e-4 1e-3 --out results/f34_64
  python examples/asv_networks.py --data-dir FOLDER --limit 5000 --out results/mine
  python examples/asv_networks.py --preset paper --data food101 --out results/food
  python examples/asv_networks.py --preset paper --network F50 --out results/f50
All images are held in memory: 4 bytes for each value, so 0.6 MB for one of 224×224×3.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; see `study_options.main`."""
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = study_options.parser(
        __file__,
        "Trains the plain networks F34 and F50 of Henmi et al. (arXiv 2008.06885) from five "
        "initializations, with several optimizers and learning rates, and tells for each "
        "initialization and optimizer the best learning rate and its validation accuracy.",
        EPILOG,
    )
    study = parser.add_argument_group("study")
    study_options.add_data_options(study, PRESETS["cpu"]["data"])
    study_options.add_augment_option(study)
    study.add_argument("--network", choices=("F34", "F50"), help="(default: F34)")
    study.add_argument(
        "--width", type=int, metavar="N", help="channels of the first stage; the source has 64"
    )
    study.add_argument(
        "--initializers",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(INITIALIZERS)}, or any id of keras_varinit or Keras",
    )
    study_options.add_baseline_option(study, BASELINE)
    study.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, metavar="NAME")
    study.add_argument("--learning-rates", nargs="+", type=float, metavar="RATE")
    return parser


def run(options: argparse.Namespace) -> None:
    """Trains every combination, then prints and plots.

    Raises:
        UserError: An option, a package or the data is wrong.
    """
    if options.width < 1:
        raise UserError(f"--width {options.width}: must be 1 or more.")
    for rate in options.learning_rates:
        if not 0 < rate < float("inf"):
            raise UserError(f"--learning-rates {rate}: must be above 0.")
    study_options.check_baseline(options)
    study_options.import_packages(options)
    from common import image_study, schemes
    from common.study import Study, study_cases

    options.initializers = list(dict.fromkeys(options.initializers))
    schemes.check([INITIALIZERS.get(name, name) for name in options.initializers])
    images = image_study.load(options)
    if min(images.x_train.shape[1:3]) < 32:
        raise UserError(
            f"{images.name}: the network needs images of 32×32 or more. Set --image-size 32."
        )
    shared = study_options.record(options, (*image_study.DATA_OPTIONS, "network", "width"))
    study = Study("asv_networks", options.out, shared, options.restart)
    cases = study_cases(
        options.seeds,
        optimizer=options.optimizers,
        initializer=options.initializers,
        learning_rate=options.learning_rates,
    )
    records = image_study.run(
        study, cases, lambda case, folder: train(case, folder, images, options), options
    )
    _report(options, images, records)


def train(
    case: Settings,
    folder: pathlib.Path,
    images: Images,
    options: argparse.Namespace,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Does one training.

    Args:
        case: `initializer`, `optimizer`, `learning_rate`, and `seed`, which decides weights,
            order and augmentation.
        folder: For what it needs to go on after a stop.
        images: What to learn.
        options: From the command line.
        callbacks: More of them.

    Returns:
        A record for `Study.run`.
    """
    import keras
    from common import image_study, plain_networks, schemes

    import keras_varinit as kv

    model = plain_networks.build(
        options.network, images.x_train.shape[1:], images.num_classes, options.width
    )
    name = case["initializer"]
    kv.initialize(model, schemes.make(INITIALIZERS.get(name, name)), seed=case["seed"])
    optimizer = getattr(keras.optimizers, case["optimizer"])(case["learning_rate"])
    return image_study.train(
        model,
        images,
        options,
        optimizer=optimizer,
        seed=case["seed"],
        label=f"{name}, {case['optimizer']} {case['learning_rate']:g}, seed {case['seed']}",
        folder=folder,
        callbacks=callbacks,
    )


def best(records: Sequence[Record]) -> tuple[float, list[Record]]:
    """The learning rate with the highest mean validation accuracy, and its trainings.

    Args:
        records: Trainings of one initializer with one optimizer.
    """
    from common import summary

    rates = summary.by_setting(records, "learning_rate")
    return max(rates.items(), key=lambda item: statistics.fmean(map(summary.final, item[1])))


def _report(options: argparse.Namespace, images: Images, records: Sequence[Record]) -> None:
    from common import image_study, summary

    groups = summary.by_setting(records, "optimizer", "initializer")
    optimizers = list(dict.fromkeys(optimizer for optimizer, _ in groups))
    setting = f"{options.network} with {options.width} channels on {images.name}"
    note = (
        f"{setting}, {image_study.scale(images, options)}. Accuracies are those after the last "
        "epoch. The learning rates are chosen on the validation images that they are reported on."
    )
    parts = [
        f"Validation accuracy at the best learning rate, in %\n{_best_table(groups, optimizers)}",
        f"The same, with differences\n{_difference_table(groups, options.baseline or BASELINE)}",
        f"Validation accuracy at every learning rate\n{_every_rate(records)}",
        note,
    ]
    over = summary.over_seeds(setting, options.seeds)
    _plot_rates(groups, optimizers, over, options.out / "learning_rates.png")
    _plot_best(groups, optimizers, options.epochs, over, options.out / "curves.png")
    image_study.report("\n\n".join(parts), options.out, ("learning_rates.png", "curves.png"))


def _best_table(groups: dict[Any, list[Record]], optimizers: Sequence[str]) -> str:
    from common import summary

    names = list(dict.fromkeys(name for _, name in groups))
    rows = []
    for optimizer in optimizers:
        accuracies = [
            100 * statistics.fmean(map(summary.final, best(groups[optimizer, name])[1]))
            for name in names
        ]
        highest = max(accuracies)
        cells = [f"{value:.2f}{' *' if value == highest else ''}" for value in accuracies]
        rows.append((optimizer, *cells))
    return summary.table(("optimizer", *names), rows) + "\n* the highest of its line"


def _difference_table(groups: dict[Any, list[Record]], baseline: str) -> str:
    from common import summary

    rows = []
    for (optimizer, name), members in groups.items():
        rate, chosen = best(members)
        against = ""
        if name != baseline and (optimizer, baseline) in groups:
            against = summary.difference(chosen, best(groups[optimizer, baseline])[1])
        accuracy = summary.spread([summary.final(record) for record in chosen])
        rows.append((optimizer, name, f"{rate:g}", accuracy, against))
    last = f"paired difference to {baseline} [95 % interval]"
    return summary.table(("optimizer", "initializer", "best rate", "accuracy", last), rows)


def _every_rate(records: Sequence[Record]) -> str:
    from common import summary

    groups = summary.by_setting(records, "optimizer", "initializer", "learning_rate")
    rates = sorted({rate for _, _, rate in groups})
    rows = []
    for optimizer, name in dict.fromkeys((optimizer, name) for optimizer, name, _ in groups):
        cells = []
        for rate in rates:
            members = groups[optimizer, name, rate]
            lost = sum(map(summary.diverged, members))
            text = summary.spread([summary.final(record) for record in members])
            cells.append(text + (f", diverged {lost}/{len(members)}" if lost else ""))
        rows.append((optimizer, name, *cells))
    return summary.table(("optimizer", "initializer", *(f"{rate:g}" for rate in rates)), rows)


def _plot_rates(
    groups: dict[Any, list[Record]], optimizers: Sequence[str], title: str, path: pathlib.Path
) -> None:
    import numpy as np
    from common import study_plots, summary
    from matplotlib import ticker

    names = list(dict.fromkeys(name for _, name in groups))
    figure, panels = study_plots.axes_grid(len(optimizers), optimizers)
    for axes, optimizer in zip(panels, optimizers, strict=True):
        for number, name in enumerate(names):
            rates = sorted(summary.by_setting(groups[optimizer, name], "learning_rate").items())
            values = np.array([[summary.final(record) for record in m] for _, m in rates]).T
            study_plots.draw_range(axes, [rate for rate, _ in rates], values, name, number)
        axes.set_xscale("log")
        axes.set_xticks([rate for rate, _ in rates], [f"{rate:g}" for rate, _ in rates])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("learning rate")
        axes.set_ylabel("final validation accuracy")
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    study_plots.save(figure, title, path)


def _plot_best(
    groups: dict[Any, list[Record]],
    optimizers: Sequence[str],
    epochs: int,
    title: str,
    path: pathlib.Path,
) -> None:
    from common import study_plots

    names = list(dict.fromkeys(name for _, name in groups))
    figure, panels = study_plots.axes_grid(len(optimizers), optimizers)
    for axes, optimizer in zip(panels, optimizers, strict=True):
        for number, name in enumerate(names):
            values = study_plots.curves(best(groups[optimizer, name])[1], "val_accuracy", epochs)
            study_plots.draw_range(axes, range(1, epochs + 1), values, name, number)
        study_plots.by_epoch(axes, "validation accuracy")
    study_plots.save(figure, f"At each one's best learning rate\n{title}", path)


if __name__ == "__main__":
    sys.exit(main())
