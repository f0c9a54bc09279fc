"""Compares weight initializers on a small ResNet: `python examples/train_resnet.py --help`."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common import app
from common import options as options_
from common.errors import UserError, require
from common.quiet import import_keras

if TYPE_CHECKING:
    import keras
    from common.data import Images
    from common.results import CsvLog, Run

# Read when torch is imported: its threads wait actively by default, which slows a machine with
# few cores down many times over as soon as anything else runs on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VALIDATION_BATCH_SIZE = 512


def main() -> int:
    """Runs the comparison.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 when stopped by the user.
    """
    return app.run(pathlib.Path(__file__).name, lambda: compare(options_.parse()))


def compare(options: argparse.Namespace) -> int:
    """Trains every initializer with every seed and reports.

    Args:
        options: As `common.options.parse` returns them.

    Returns:
        The exit code.

    Raises:
        UserError: When a package, an initializer or the data is missing.
    """
    keras = _import_packages()
    from common import data, initializers, results

    initializers.register()
    initializers.check(options.initializers)
    images = data.load(options.data, options.data_dir, options.image_size, options.limit)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        log = results.CsvLog(options.out / "history.csv")
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written to: {error.strerror}.") from error
    print(f"{images}\nKeras {keras.__version__} with {keras.config.backend()}", flush=True)
    runs: list[Run] = []
    exit_code = 0
    try:
        _train_all(options, images, log, runs)
    except KeyboardInterrupt:
        exit_code = 130
        print(f"\nStopped. Runs that had ended: {len(runs)}.")
    if runs:
        _report(options, images, runs)
    return exit_code


def _import_packages() -> types.ModuleType:
    for package in ("matplotlib", "tqdm"):
        require(package, package, "for this example")
    return import_keras()


def _train_all(options: argparse.Namespace, images: Images, log: CsvLog, runs: list[Run]) -> None:
    """Adds a run to `runs`, and its rows to `log`, as soon as it has ended."""
    from common import progress

    # Seeds go outside, so that a comparison that is stopped early has all initializers in it.
    pairs = [(name, seed) for seed in range(options.seeds) for name in options.initializers]
    with progress.overall_bar(len(pairs)) as bar:
        for number, (name, seed) in enumerate(pairs, start=1):
            run = train(name, seed, images, options)
            log.add(run)
            runs.append(run)
            reached = run.epochs_to(options.target_accuracy)
            bar.update()
            bar.write(
                f"[{number}/{len(pairs)}] {name}, seed {seed}: "
                f"validation accuracy {run.final_accuracy:.4f}, {options.target_accuracy:.1%} "
                + (f"in epoch {reached}" if reached else "not reached")
                + f", {run.seconds:.1f} s"
                + (" (diverged: the loss is not finite)" if run.diverged else "")
            )
            sys.stdout.flush()


def train(name: str, seed: int, images: Images, options: argparse.Namespace) -> Run:
    """Trains one model from scratch.

    Args:
        name: The initializer's id.
        seed: Decides the weights, the order of the images and their augmentation.
        images: What to learn.
        options: As `common.options.parse` returns them.

    Returns:
        The run's learning curves and duration.
    """
    import keras
    from common import batches, initializers, progress, resnet, results

    import keras_varinit as kv

    started = time.perf_counter()
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = resnet.build_resnet(
        images.x_train.shape[1:],
        images.num_classes,
        kernel_initializer=name,
        depth=options.depth,
        width=options.width,
        batch_norm=options.batch_norm,
    )
    train_batches = batches.SeededBatches(
        images.x_train, images.y_train, options.batch_size, seed, options.augment
    )
    model.compile(
        optimizer=_optimizer(options, options.epochs * len(train_batches)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = [progress.EpochBar(f"{name}, seed {seed}", options.epochs)]
    if initializers.needs_context(name):
        # An id alone knows nothing of the model: this tells each initializer what surrounds its
        # layer, and draws the kernels again, before the first step.
        callbacks.insert(0, kv.ContextInjector())
    history = model.fit(
        train_batches,
        epochs=options.epochs,
        validation_data=(images.x_val, images.y_val),
        validation_batch_size=VALIDATION_BATCH_SIZE,
        callbacks=callbacks,
        verbose=0,
    )
    curves = {metric: [float(v) for v in history.history[metric]] for metric in results.METRICS}
    return results.Run(name, seed, curves, time.perf_counter() - started)


def _optimizer(options: argparse.Namespace, steps: int) -> keras.optimizers.Optimizer:
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    if options.optimizer == "adam":
        return keras.optimizers.Adam(schedule)
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)


def _report(options: argparse.Namespace, images: Images, runs: Sequence[Run]) -> None:
    from common import plots, results

    norm = "with" if options.batch_norm else "without"
    setting = f"ResNet-{options.depth} {norm} batch normalization on {images.name}"
    note = f"{setting}, {len(images.x_val):,} validation images."
    seeds = max(map(len, results.group(runs).values()))
    if seeds > 1:
        note += f"\n± is the sample standard deviation over {seeds} seeds."
        setting += f": mean and range over {seeds} seeds"
    table = f"{results.format_table(runs, options.target_accuracy)}\n\n{note}"
    (options.out / "table.txt").write_text(f"{table}\n", encoding="utf-8")
    plots.save_learning_curves(runs, options.target_accuracy, setting, options.out / "curves.png")
    print(f"\n{table}\nWritten to {options.out}: history.csv, table.txt, curves.png")


if __name__ == "__main__":
    sys.exit(main())
