"""Saturation and back-propagated gradients: `python examples/glorot_bengio.py --help`."""

from __future__ import annotations

import argparse
import csv
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common import study_options
from common.errors import UserError

if TYPE_CHECKING:
    import keras
    import numpy as np
    from common.study import Settings
    from common.summary import Record

ACTIVATIONS = ("sigmoid", "tanh", "softsign")
#: U(-1/√n, 1/√n) of n inputs, whose variance is 1/(3n), and Glorot's uniform.
INITIALIZATIONS = ("heuristic", "normalized")
#: Hidden layers in the source's figures 2 to 4.
LAYERS = {"sigmoid": 4, "tanh": 5, "softsign": 5}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "images": 90,
        "test_images": 90,
        "layers": 3,
        "width": 16,
        "epochs": 3,
        "measure_every": 1,
        "seeds": 2,
        "activations": ("tanh",),
    },
    "cpu": {
        "images": 5_000,
        "test_images": 2_000,
        "width": 100,
        "epochs": 60,
        "measure_every": 2,
        "seeds": 3,
        "activations": ACTIVATIONS,
    },
    "paper": {
        "images": 200_000,
        "test_images": 20_000,
        "width": 1000,
        "epochs": 150,
        "measure_every": 2,
        "seeds": 5,
        "activations": ACTIVATIONS,
    },
}
#: Test images that activations and gradients are measured on.
MEASURED_IMAGES = 300
#: Seeds of the test images and of those that pixels are standardized by; no training has them.
_TEST, _STANDARD = (2**31, 0), (2**31, 1)

EPILOG = """\
examples:
  python examples/glorot_bengio.py --preset smoke --out results/smoke
  python examples/glorot_bengio.py --out results/shapes
  python examples/glorot_bengio.py --activations sigmoid --epochs 150 --out results/sigmoid
  python examples/glorot_bengio.py --preset paper --steps-per-execution 100 --out results/paper

The source (Glorot & Bengio, AISTATS 2010) has an endless stream of 32×32 pictures with one or two
of triangle, parallelogram and ellipse, 1000 units in 4 hidden layers of sigmoids or 5 of tanh or
softsign, plain SGD with 10 pictures in a batch, and 300 test pictures on which activations are
measured. It tunes the learning rate of each network; one rate for all, the number of pictures in
an epoch, epochs, seeds, standardized pixels and the width of the preset cpu are our choice.
--limit bounds the pictures of an epoch and of the test set.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; see `study_options.main`."""
    return study_options.main(_parser(), PRESETS, run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = study_options.parser(
        __file__,
        "Trains deep networks of sigmoids, tanh and softsign on pictures of shapes, initialized by "
        "the old heuristic and by the normalized one, and shows what saturates and how gradients "
        "shrink.",
        EPILOG,
    )
    study = parser.add_argument_group("study")
    study.add_argument("--images", type=int, metavar="N", help="pictures in an epoch")
    study.add_argument("--test-images", type=int, metavar="N")
    study.add_argument(
        "--fixed", action="store_true", help="the same pictures in each epoch, not fresh ones"
    )
    study.add_argument(
        "--activations", nargs="+", choices=ACTIVATIONS, metavar="NAME", help=", ".join(ACTIVATIONS)
    )
    study.add_argument(
        "--layers", type=int, metavar="N",
        help="hidden ones (default: 4 of sigmoids, 5 of tanh or softsign)",
    )  # fmt: skip
    study.add_argument("--width", type=int, metavar="N", help="units in each")
    study.add_argument(
        "--learning-rate", type=float, default=0.05, metavar="RATE", help="(default: %(default)g)"
    )
    study.add_argument(
        "--measure-every", type=int, metavar="N", help="epochs from one measurement to the next"
    )
    parser.set_defaults(batch_size=10)
    return parser


def run(options: argparse.Namespace) -> None:
    """Trains every activation with both initializations and every seed, then prints and plots.

    Raises:
        UserError: An option or a package is wrong.
    """
    _check(options)
    study_options.import_packages(options)
    from common.study import Study, study_cases

    decisive = (
        *("images", "test_images", "fixed", "layers", "width", "learning_rate", "measure_every"),
    )
    study = Study(
        "glorot_bengio", options.out, study_options.record(options, decisive), options.restart
    )
    cases = study_cases(
        options.seeds,
        activation=options.activations,
        initialization=INITIALIZATIONS,
    )
    pictures = functools.cache(lambda: Pictures(options))
    with study_options.set_up(options):
        study.run(cases, lambda case, folder: train(case, folder, pictures(), options))
    found = [study.find(case) for case in cases]
    _report(options, [record for record in found if record])


def _check(options: argparse.Namespace) -> None:
    for name in ("images", "test_images", "layers", "width", "measure_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more.")
    if not 0 < options.learning_rate < float("inf"):
        raise UserError(f"--learning-rate {options.learning_rate:g}: must be above 0.")
    options.images, options.test_images = (
        min(number, options.limit or number) for number in (options.images, options.test_images)
    )
    if options.images < options.batch_size:
        raise UserError(
            f"--batch-size {options.batch_size}: an epoch has {options.images} pictures. Lower "
            "it, or raise --images or --limit."
        )


class Pictures:
    """Test and training pictures as rows of standardized pixels.

    Args:
        options: From the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from common import shapeset

        sample, _ = shapeset.draw(2000, _STANDARD)
        self._options = options
        self._standard = float(sample.mean()), float(sample.std())
        images, labels = shapeset.draw(options.test_images, _TEST)
        self.test: tuple[np.ndarray, np.ndarray] = self._rows(images), labels

    def _rows(self, images: np.ndarray) -> np.ndarray:
        from common import shapeset

        return shapeset.standardized(images, *self._standard)

    def batches(self, seed: int) -> keras.utils.PyDataset:
        """Training batches, equal for equal seeds."""
        from common import shapeset
        from common.batches import SeededBatches

        number, size = self._options.images, self._options.batch_size
        if not self._options.fixed:
            return shapeset.FreshShapes(number, size, seed, self._standard)
        images, labels = shapeset.draw(number, seed)
        return SeededBatches(self._rows(images), labels, size, seed)


def train(
    case: Settings,
    folder: pathlib.Path,
    pictures: Pictures,
    options: argparse.Namespace,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Does one training.

    Args:
        case: `activation`, `initialization` and `seed`, which decides weights and pictures.
        folder: For what it needs to go on after a stop.
        pictures: What to learn.
        options: From the command line.
        callbacks: More of them.

    Returns:
        A record for `Study.run`: `signal` holds mean and deviation of the activations by layer and
        measurement, `start` their histograms and those of the gradients by layer.
    """
    import keras
    from common import study

    import keras_varinit as kv

    keras.utils.clear_session()
    keras.utils.set_random_seed(case["seed"])
    layers = options.layers or LAYERS[case["activation"]]
    model = build(layers, options.width, case["activation"])
    kv.initialize(model, initializer(case["initialization"]), seed=case["seed"])
    model.compile(
        optimizer=keras.optimizers.SGD(options.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **study_options.compile_arguments(options),
    )
    measured = tuple(part[:MEASURED_IMAGES] for part in pictures.test)
    start = histograms(kv.measure_signal(model, *measured, batch_size=MEASURED_IMAGES, verbose=0))
    monitor = kv.SignalMonitor(
        measured,
        every=options.measure_every,
        log_dir=folder / "signal",
        batch_size=MEASURED_IMAGES,
        tensorboard=False,
    )
    history = study.fit(
        model,
        pictures.batches(case["seed"]),
        label=", ".join(map(str, case.values())),
        epochs=options.epochs,
        validation=pictures.test,
        folder=folder,
        callbacks=[monitor, *callbacks],
    )
    signal = _read_signal(folder / "signal" / "signal.csv", options.measure_every)
    return {"history": history, "signal": signal, "start": start}


def build(layers: int, width: int, activation: str) -> keras.Model:
    """Dense layers of one activation, and nine logits."""
    from common import shapeset
    from keras import Input, Sequential
    from keras.layers import Dense

    hidden = [
        Dense(width, activation=activation, name=f"layer_{number}")
        for number in range(1, layers + 1)
    ]
    head = Dense(len(shapeset.CLASSES), name="logits")
    return Sequential([Input((shapeset.SIZE**2,)), *hidden, head])


def initializer(name: str) -> Any:
    """The initializer of one of `INITIALIZATIONS`."""
    import keras

    if name == "normalized":
        return keras.initializers.GlorotUniform()
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def histograms(signal: Any) -> dict[str, dict[str, dict[str, list[float]]]]:
    """What is drawn of a `SignalReport`, by layer.

    Returns:
        For `activations` (of hidden layers) and `gradients` (by each layer's pre-activations), by
        layer, the bins' `edges` and the `density` between them.
    """
    rows = list(signal)
    return {
        "activations": {row.name: _plain(row.histogram) for row in rows if row.has_units},
        "gradients": {row.name: _plain(row.gradient_histogram) for row in rows},
    }


def _plain(histogram: Any) -> dict[str, list[float]]:
    edges, density = histogram.edges.tolist(), histogram.density.tolist()
    return {name: [float(f"{v:.6g}") for v in values]
            for name, values in (("edges", edges), ("density", density))}  # fmt: skip


def _read_signal(path: pathlib.Path, every: int) -> dict[str, Any]:
    """Epochs, and by hidden layer the mean and the deviation of its activations at each."""
    with path.open(newline="", encoding="utf-8") as file:
        # A resumed training also measures where it goes on.
        lines = [line for line in csv.DictReader(file) if int(line["epoch"]) % every == 0]
    layers: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if line["name"].startswith("layer_"):
            layer = layers.setdefault(line["name"], {"mean": [], "deviation": []})
            layer["mean"].append(float(line["output_mean"]))
            layer["deviation"].append(float(line["output_variance"]) ** 0.5)
    return {"epochs": sorted({int(line["epoch"]) for line in lines}), "layers": layers}


def _report(options: argparse.Namespace, records: Sequence[Record]) -> None:
    from common import image_study, saturation_plots, summary

    pictures = "a fixed set" if options.fixed else "fresh ones in each epoch"
    plots = ["test_error.png", "saturation.png"]
    _plot_error(records, options, options.out / plots[0])
    saturation_plots.plot_saturation(records, options.out / plots[1])
    for activation, members in summary.by_setting(records, "activation").items():
        plots.append(f"histograms_{activation}.png")
        saturation_plots.plot_histograms(members[0], members, activation, options.out / plots[-1])
    note = (
        f"{options.width} units, {summary.counted(options.epochs, 'epoch')} of "
        f"{options.images:,} pictures ({pictures}), {options.test_images:,} test pictures, "
        f"{summary.counted(options.seeds, 'seed')}."
    )
    image_study.report(f"{_table(records)}\n\n{note}", options.out, plots)


def _table(records: Sequence[Record]) -> str:
    from common import summary

    groups = summary.by_setting(records, "activation", "initialization")
    rows = []
    for (activation, initialization), members in groups.items():
        baseline = groups.get((activation, "heuristic"), [])
        versus = _difference(members, baseline) if initialization == "normalized" else ""
        errors = [1 - summary.final(record) for record in members]
        best = [1 - max(record["history"]["val_accuracy"]) for record in members]
        rows.append(
            (
                *(activation, initialization, summary.spread(errors), summary.spread(best)),
                f"{sum(map(summary.diverged, members))}/{len(members)}",
                versus,
            )
        )
    header = (
        *("activation", "initialization", "final test error", "best epoch's", "diverged"),
        "paired difference normalized - heuristic [95 % interval]",
    )
    return summary.table(header, rows)


def _difference(records: Sequence[Record], baseline: Sequence[Record]) -> str:
    """Of the errors, seed by seed; fewer errors are better."""
    from common import paired, summary

    errors, others = (
        [1 - summary.final(record) for record in sorted(group, key=lambda r: r["settings"]["seed"])]
        for group in (records, baseline)
    )
    if len(errors) < 2:
        return "needs 2 seeds"
    found = paired.difference(errors, others)
    verdict = {"better": "worse", "worse": "better"}.get(found.verdict, found.verdict)
    return f"{found} {verdict}"


def _plot_error(records: Sequence[Record], options: argparse.Namespace, path: pathlib.Path) -> None:
    from common import study_plots, summary
    from matplotlib import ticker

    groups = summary.by_setting(records, "activation")
    figure, panels = study_plots.axes_grid(len(groups), list(groups))
    for axes, members in zip(panels, groups.values(), strict=True):
        lines = summary.by_setting(members, "initialization")
        for number, (name, trained) in enumerate(lines.items()):
            errors = 1 - study_plots.curves(trained, "val_accuracy", options.epochs)
            study_plots.draw_range(axes, range(1, options.epochs + 1), errors, name, number)
        study_plots.by_epoch(axes, "test error")
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    study_plots.save(figure, summary.over_seeds("Test error", options.seeds), path)


if __name__ == "__main__":
    sys.exit(main())
