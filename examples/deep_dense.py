"""Depth-scaled initialization of 54 dense layers: `python examples/deep_dense.py --help`."""

from __future__ import annotations

import argparse
import functools
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

INITIALIZERS = ("he_normal", "he_uniform", "glorot_normal", "glorot_uniform")
#: "unit" is the initializer as it is: every layer's variance is multiplied by 1.
SCHEDULES = ("unit", "increasing", "constant", "decreasing")
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "data": "digits",
        "depth": 4,
        "width": 16,
        "epochs": 2,
        "seeds": 2,
        "batch_size": 32,
        "limit": 128,
        "initializers": ("he_normal",),
        "schedules": ("unit", "increasing"),
    },
    "cpu": {
        "data": "digits",
        "depth": 54,
        "width": 64,
        "epochs": 12,
        "seeds": 3,
        "batch_size": 128,
        "initializers": INITIALIZERS,
        "schedules": SCHEDULES,
    },
    "paper": {
        "data": "cifar10",
        "depth": 54,
        "width": 64,
        "epochs": 50,
        "seeds": 5,
        "batch_size": 128,
        "initializers": INITIALIZERS,
        "schedules": SCHEDULES,
    },
}
#: What is measured in each layer, and the axis it is drawn on.
MEASURED = {
    "weights": "weights",
    "activations": "activations",
    "gradients": "gradients of one image's loss",
}

#: Images that activations and gradients are measured on.
MEASURED_IMAGES = 256

#: Of panels in a grid.
PANELS: dict[str, Any] = {"panel": (3.9, 3.1), "sharex": True, "sharey": "row"}

EPILOG = """\
examples:
  python examples/deep_dense.py --preset smoke --out results/smoke
  python examples/deep_dense.py --data-dir FOLDER --out results/deep
  python examples/deep_dense.py --batch-norm both --initializers he_normal --out results/norm
  KERAS_BACKEND=jax python examples/deep_dense.py --out results/deep  # the quickest on a CPU
  python examples/deep_dense.py --preset paper --steps-per-execution 50 --out results/paper

The source (arXiv 2509.05018, section 9) states the data, 54 layers of 64 units, ReLU, inputs in
[0, 1], He and Xavier, normal and uniform, four schedules and the network variance 22. It names no
optimizer, learning rate, batch size, number of epochs or seeds and no head: Adam at 0.001, 128
images, 50 epochs, 5 seeds and logits with a cross-entropy are our choice. The head counts as a
layer, so that the network variance is the product over all 55 kernels.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; see `study_options.main`."""
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = study_options.parser(
        __file__,
        "Trains very deep networks of narrow dense layers whose variance grows, falls or stays "
        "the same from the first layer to the last, and shows curves and each layer's signal.",
        EPILOG,
    )
    study = parser.add_argument_group("study")
    study_options.add_data_options(study, PRESETS["cpu"]["data"])
    study.add_argument("--depth", type=int, metavar="N", help="hidden layers")
    study.add_argument("--width", type=int, metavar="N", help="units in each")
    study.add_argument(
        "--initializers", nargs="+", choices=INITIALIZERS, metavar="ID",
        help=", ".join(INITIALIZERS),
    )  # fmt: skip
    study.add_argument(
        "--schedules", nargs="+", choices=SCHEDULES, metavar="NAME",
        help="how the variance changes with depth: unit (not at all: the baseline), increasing, "
        "constant, decreasing",
    )  # fmt: skip
    study.add_argument(
        "--network-variance", type=float, default=22.0, metavar="V",
        help="product of the layers' factors, but for unit (default: %(default)g)",
    )  # fmt: skip
    study.add_argument(
        "--offset", type=float, default=1.0, metavar="N",
        help="added to a layer's number in the logarithm (default: %(default)g)",
    )  # fmt: skip
    study.add_argument(
        "--batch-norm", choices=("off", "on", "both"), default="off",
        help="normalize between each layer and its ReLU (default: %(default)s)",
    )  # fmt: skip
    study.add_argument(
        "--optimizer", choices=("adam", "sgd"), default="adam",
        help="sgd has a momentum of 0.9 (default: %(default)s)",
    )  # fmt: skip
    study.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="RATE", help="(default: %(default)g)"
    )
    parser.set_defaults(augment="none")
    return parser


def run(options: argparse.Namespace) -> None:
    """Trains every initializer with every schedule and seed, then prints and plots.

    Raises:
        UserError: An option, a package or the data is wrong.
    """
    _check(options)
    study_options.import_packages(options)
    from common.study import Study, study_cases

    decisive = (
        *("data", "image_size", "depth", "width", "network_variance", "offset"),
        *("optimizer", "learning_rate"),
    )
    shared = study_options.record(options, decisive)
    study = Study("deep_dense", options.out, shared, options.restart)
    norms = {"off": ("off",), "on": ("on",), "both": ("off", "on")}[options.batch_norm]
    cases = study_cases(
        options.seeds,
        batch_norm=norms,
        initializer=options.initializers,
        schedule=options.schedules,
    )
    load = functools.cache(lambda: _load(options))
    with study_options.set_up(options):
        study.run(cases, lambda case, folder: train(case, folder, load(), options))
    found = [study.find(case) for case in cases]
    _report(options, [record for record in found if record])


def _check(options: argparse.Namespace) -> None:
    for name in ("depth", "width"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be 1 or more.")
    for name in ("network_variance", "offset", "learning_rate"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be above 0.")


def _load(options: argparse.Namespace) -> Images:
    from common import data

    images = data.load(
        options.data, options.data_dir, options.image_size, options.limit, scaling="unit"
    )
    print(images, flush=True)
    return images


def train(
    case: Settings,
    folder: pathlib.Path,
    images: Images,
    options: argparse.Namespace,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Does one training.

    Args:
        case: `initializer`, `schedule`, `batch_norm` ("on" or "off") and `seed`, which decides
            weights and order.
        folder: For what it needs to go on after a stop.
        images: What to learn.
        options: From the command line.
        callbacks: More of them.

    Returns:
        A record for `Study.run`; `start` and `end` hold standard deviations by layer.
    """
    import keras
    from common import image_study

    import keras_varinit as kv

    keras.utils.clear_session()
    keras.utils.set_random_seed(case["seed"])
    model = build(images.x_train.shape[1:], images.num_classes, options, case["batch_norm"] == "on")
    scheme = case["initializer"]
    if case["schedule"] != "unit":
        scheme = kv.DepthScaled(
            scheme,
            schedule=case["schedule"],
            network_variance=options.network_variance,
            offset=options.offset,
        )
    kv.initialize(model, scheme, seed=case["seed"])
    start = measure(model, images)
    record = image_study.train(
        model,
        images,
        options,
        optimizer=_optimizer(options),
        seed=case["seed"],
        label=", ".join(map(str, case.values())),
        folder=folder,
        callbacks=callbacks,
    )
    return {**record, "start": start, "end": measure(model, images)}


def build(
    shape: tuple[int, ...], classes: int, options: argparse.Namespace, batch_norm: bool
) -> keras.Model:
    """Dense layers with ReLU, and logits.

    Args:
        shape: An image's.
        classes: How many.
        options: With `depth` and `width`.
        batch_norm: Whether to normalize in front of each ReLU.
    """
    from keras import Input, Sequential, layers

    model = Sequential([Input(shape), layers.Flatten(name="pixels")])
    for number in range(1, options.depth + 1):
        model.add(layers.Dense(options.width, use_bias=not batch_norm, name=f"dense_{number}"))
        if batch_norm:
            model.add(layers.BatchNormalization(name=f"norm_{number}"))
        model.add(layers.ReLU(name=f"relu_{number}"))
    model.add(layers.Dense(classes, name="logits"))
    return model


def measure(model: keras.Model, images: Images) -> dict[str, list[float | None]]:
    """Standard deviations by layer, the head last.

    Args:
        model: From `build`.
        images: The first training images are used.

    Returns:
        Those of the kernels' entries, of the activations, and of the gradients of one image's loss
        by the kernels' outputs; None for what is not finite.
    """
    import keras
    import numpy as np

    import keras_varinit as kv

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = images.x_train[:MEASURED_IMAGES], images.y_train[:MEASURED_IMAGES]
    signal = kv.measure_signal(model, *data, loss, batch_size=MEASURED_IMAGES, verbose=0)
    dense = [row for row in signal if row.kind == "weights"]
    active = [row for row in signal if row.name.startswith("relu_")] + dense[-1:]
    kernels = [model.get_layer(row.name).kernel for row in dense]
    values = {
        "weights": [float(np.std(keras.ops.convert_to_numpy(kernel))) for kernel in kernels],
        "activations": [row.output_variance**0.5 for row in active],
        "gradients": [row.gradient_second_moment**0.5 for row in dense],
    }
    return {
        name: [value if np.isfinite(value) else None for value in series]
        for name, series in values.items()
    }


def _optimizer(options: argparse.Namespace) -> keras.optimizers.Optimizer:
    import keras

    if options.optimizer == "adam":
        return keras.optimizers.Adam(options.learning_rate)
    return keras.optimizers.SGD(options.learning_rate, momentum=0.9)


def _report(options: argparse.Namespace, records: Sequence[Record]) -> None:
    from common import image_study, summary

    source = pathlib.Path(options.data_dir).name if options.data == "folder" else options.data
    lines, plots = [_table(records)], []
    for norm, members in summary.by_setting(records, "batch_norm").items():
        setting = (
            f"{options.depth} dense layers of {options.width} units "
            f"{'with' if norm == 'on' else 'without'} batch normalization, {source}"
        )
        suffix = "_batch_norm" if norm == "on" else ""
        if options.seeds > 1:
            setting += f", {options.seeds} seeds"
        _plot_curves(members, options, setting, options.out / f"curves{suffix}.png")
        _plot_layers(members, setting, options.out / f"layers{suffix}.png")
        plots += [f"curves{suffix}.png", f"layers{suffix}.png"]
        lines.append(f"{setting}; {summary.counted(options.epochs, 'epoch')}, {options.optimizer}.")
    image_study.report("\n".join([lines[0], "", *lines[1:]]), options.out, plots)


def _table(records: Sequence[Record]) -> str:
    from common import summary

    groups = summary.by_setting(records, "batch_norm", "initializer", "schedule")
    rows = []
    for (norm, name, schedule), members in groups.items():
        baseline = groups.get((norm, name, "unit"))
        versus = summary.difference(members, baseline) if baseline and schedule != "unit" else ""
        rows.append(
            (
                *(name, schedule, norm),
                summary.spread([summary.final(record) for record in members]),
                summary.spread([max(record["history"]["val_accuracy"]) for record in members]),
                f"{sum(map(summary.diverged, members))}/{len(members)}",
                versus,
            )
        )
    header = (
        *("initializer", "schedule", "batch norm", "final val. accuracy", "best epoch's"),
        *("diverged", "paired difference to unit [95 % interval]"),
    )
    return summary.table(header, rows)


def _plot_curves(
    records: Sequence[Record], options: argparse.Namespace, title: str, path: pathlib.Path
) -> None:
    """A column for each initializer, accuracy above loss, a line for each schedule."""
    from common import study_plots
    from common.summary import by_setting

    groups = by_setting(records, "initializer")
    figure, grid = study_plots.grid(len(study_plots.METRICS), len(groups), list(groups), **PANELS)
    for row, (metric, label) in zip(grid, study_plots.METRICS.items(), strict=True):
        for axes, members in zip(row, groups.values(), strict=True):
            for schedule, trained in by_setting(members, "schedule").items():
                study_plots.draw_range(
                    axes,
                    range(1, options.epochs + 1),
                    study_plots.curves(trained, metric, options.epochs),
                    schedule,
                    SCHEDULES.index(schedule),
                )
            study_plots.by_epoch(axes, label)
            if metric == "loss":
                study_plots.log_scale(axes)
            axes.label_outer()
    study_plots.save(figure, f"Mean and range\n{title}", path)


def _plot_layers(records: Sequence[Record], title: str, path: pathlib.Path) -> None:
    """A column for each initializer; dotted at the start, full at the end, the mean over seeds."""
    import numpy as np
    from common import study_plots, summary
    from common.plots import style

    groups = summary.by_setting(records, "initializer")
    figure, grid = study_plots.grid(len(MEASURED), len(groups), list(groups), **PANELS)
    for row, (name, label) in zip(grid, MEASURED.items(), strict=True):
        for axes, members in zip(row, groups.values(), strict=True):
            for schedule, trained in summary.by_setting(members, "schedule").items():
                colour = style(SCHEDULES.index(schedule))["color"]
                for when, dashes in (("start", ":"), ("end", "-")):
                    values = summary.geometric_mean([record[when][name] for record in trained])
                    layers = np.arange(1, len(values) + 1)
                    line = {"color": colour, "linestyle": dashes, "linewidth": 1.6}
                    axes.plot(layers, values, label=f"{schedule}, {when}", **line)
            study_plots.log_scale(axes)
            study_plots.whole_numbers(axes)
            axes.set_xlabel("layer (the last is the head)")
            axes.set_ylabel(label)
            axes.label_outer()
    study_plots.save(figure, f"Standard deviations by layer\n{title}", path)


if __name__ == "__main__":
    sys.exit(main())
