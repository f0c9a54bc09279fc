"""What the studies of image networks share: loading, one training, the last lines."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

import keras_varinit as kv
from common import data, device_images, study, study_options, summary
from common.batches import SeededBatches
from common.data import Images
from common.summary import Record

#: What decides the images; for `study_options.record`.
DATA_OPTIONS = ("data", "image_size", "augment")


def load(options: argparse.Namespace) -> Images:
    """Loads what the command line names, and says what it is."""
    images = data.load(options.data, options.data_dir, options.image_size, options.limit)
    print(f"{images}\nKeras {keras.__version__} with {keras.config.backend()}", flush=True)
    return images


def run(
    records: study.Study,
    cases: Sequence[study.Settings],
    train_case: Callable[[study.Settings, pathlib.Path], dict[str, Any]],
    options: argparse.Namespace,
) -> list[Record]:
    """Does what is missing, each training in a fresh Keras session with the random seed set.

    Args:
        records: The study.
        cases: The settings of each training, `seed` among them.
        train_case: Builds and trains a model; gets the settings and a folder.
        options: From the command line.

    Returns:
        The records of all cases.
    """

    def alone(case: study.Settings, folder: pathlib.Path) -> dict[str, Any]:
        # TensorFlow's distribution scope does not survive the clearing of a session.
        keras.utils.clear_session()
        with study_options.set_up(options):
            keras.utils.set_random_seed(case["seed"])
            return train_case(case, folder)

    records.run(cases, alone)
    return [found for case in cases if (found := records.find(case)) is not None]


def train(
    model: keras.Model,
    images: Images,
    options: argparse.Namespace,
    *,
    optimizer: keras.optimizers.Optimizer,
    seed: int,
    label: str,
    folder: pathlib.Path,
    from_logits: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Trains a built classifier.

    Args:
        model: Puts out a value for each class; this library's initializers get their context.
        images: What to learn.
        options: From the command line.
        optimizer: With its learning rate.
        seed: Decides order and augmentation of the images.
        label: What the progress bar shows.
        folder: As `study.fit`.
        from_logits: Whether the model's outputs are logits or probabilities.
        callbacks: More of them.

    Returns:
        A record for `Study.run`.
    """
    if "keras_varinit>" in model.to_json():
        kv.inject(model)  # which refuses a model that has none of our initializers
    feed: tuple[np.ndarray, np.ndarray] = images.x_val, images.y_val
    trained = model
    if options.data_on_device:
        trained = device_images.feeding(model, images)
        feed = device_images.rows(len(images.x_train) + np.arange(len(images.x_val))), images.y_val
    trained.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
        **study_options.compile_arguments(options),
    )
    history = study.fit(
        trained,
        batches(images, options, seed),
        label=label,
        epochs=options.epochs,
        validation=feed,
        folder=folder,
        callbacks=callbacks,
    )
    return {"history": history, "parameters": model.count_params()}


def batches(images: Images, options: argparse.Namespace, seed: int) -> SeededBatches:
    """Training batches that depend on the seed alone, not on the initializer."""
    kind = device_images.RowBatches if options.data_on_device else SeededBatches
    return kind(images.x_train, images.y_train, options.batch_size, seed, options.augment)


def scale(images: Images, options: argparse.Namespace) -> str:
    """Epochs, validation images and seeds, for the line under a table."""
    epochs = summary.counted(options.epochs, "epoch")
    seeds = summary.counted(options.seeds, "seed")
    return f"{epochs}, {len(images.x_val):,} validation images, {seeds}"


def report(text: str, out: pathlib.Path, plots: Sequence[str]) -> None:
    """Prints the table, and writes it beside the plots."""
    (out / "table.txt").write_text(f"{text}\n", encoding="utf-8")
    files = ", ".join(("results.json", "history.csv", "table.txt", *plots))
    print(f"\n{text}\nIn {out}: {files}")
