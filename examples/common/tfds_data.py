"""Image classification data of TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import difflib
import logging
import pathlib
import types
import urllib.parse
from typing import Any

import numpy as np

from common.data_options import LAYOUT, VALIDATION_SPLITS
from common.errors import UserError, require
from common.folder import DEFAULT_SIZE, Arrays, Loaded
from common.quiet import quiet_import

# TensorFlow Datasets looks here for prepared copies before it turns to a data set's own hosts.
_PREPARED_COPIES = "https://storage.googleapis.com"
_PROBE_SECONDS = 5


def load_named(
    name: str, data_dir: str | None, image_size: int | None, limit: int | None
) -> Loaded:
    """Loads a data set of TensorFlow Datasets, which downloads it on first use.

    Args:
        name: The data set's name, for example "cifar10".
        data_dir: Where TensorFlow Datasets keeps its data; `None` is its default.
        image_size: The side to resize images to; `None` keeps a fixed size as it is.
        limit: The most images to read of each split.

    Returns:
        The data set's name, arrays of training and of validation images, number of classes.

    Raises:
        UserError: When there is no such data set, or it is not there and cannot be downloaded.
    """
    tensorflow, tfds = _import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        close = difflib.get_close_matches(name, [*tfds.list_builders(), "digits", "folder"], n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(
            f"--data {name}: neither digits, nor folder, nor a data set of TensorFlow Datasets."
            f"{hint} The names are listed at https://www.tensorflow.org/datasets/catalog."
        ) from error
    except Exception as error:
        raise UserError(f"--data {name}: {_first_line(error)}") from error
    _check_features(builder, name)
    if not builder.data_path.joinpath("dataset_info.json").exists():
        _check_reachable(builder, name)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise _unavailable(name, builder, _first_line(error)) from error
    try:
        return _load_splits(builder, name, image_size, limit)
    except (OSError, ValueError, tensorflow.errors.OpError) as error:
        raise UserError(f"--data {name}: reading failed: {_first_line(error)}") from error


def _import_tfds() -> tuple[types.ModuleType, types.ModuleType]:
    purpose = "for --data with a name of TensorFlow Datasets"
    with quiet_import():
        tensorflow = require("tensorflow", "tensorflow", purpose)
    # With another backend, TensorFlow only reads files here and must not take the GPU's memory.
    import keras

    if keras.config.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):
            tensorflow.config.set_visible_devices([], "GPU")
    for noisy in ("absl", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # TensorFlow Datasets imports this while it loads, without declaring it.
    require("importlib_resources", "importlib_resources", purpose)
    return tensorflow, require("tensorflow_datasets", "tensorflow-datasets", purpose)


def _check_reachable(builder: Any, name: str) -> None:
    """Fails at once where the download would fail, after minutes of retries."""
    root = builder.data_path.parents[builder.info.full_name.count("/")]
    has_downloads = any(pathlib.Path(str(root), "downloads").glob("**/*.INFO"))
    if has_downloads or builder.MANUAL_DOWNLOAD_INSTRUCTIONS or not builder.url_infos:
        return
    requests = require("requests", "requests", "to download data sets")
    addresses = {
        "{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(u)) for u in builder.url_infos
    }
    for address in sorted(addresses | {_PREPARED_COPIES}):
        try:
            requests.head(address, timeout=_PROBE_SECONDS)
        except requests.exceptions.RequestException:
            continue
        return
    hosts = ", ".join(sorted(a.split("//")[1] for a in addresses))
    raise _unavailable(name, builder, f"{hosts} cannot be reached")


def _unavailable(name: str, builder: Any, reason: str) -> UserError:
    missing = f"--data {name}: not found in {builder.data_path}, and TensorFlow Datasets cannot"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        steps = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        return UserError(f"{missing} fetch it by itself. Its instructions: {steps}")
    return UserError(
        f"{missing} fetch it: {reason}. Run once with network access, or name the folder of an "
        "earlier download with --data-dir, or use your own images with --data-dir FOLDER, laid out "
        f"as {LAYOUT}, or --data digits, which needs no download."
    )


def _check_features(builder: Any, name: str) -> None:
    """Refuses what is not pairs of one image and one label, before it is downloaded."""
    features = dict(builder.info.features.items())
    image, label = (features.get(key) for key in _keys(builder))
    if not hasattr(label, "num_classes") or label.num_classes is None:
        raise UserError(f"--data {name}: not a data set of images with one class label each.")
    if len(getattr(image, "shape", None) or ()) != 3:
        raise UserError(f"--data {name}: its inputs are not images.")


def _keys(builder: Any) -> tuple[str, str]:
    keys = builder.info.supervised_keys
    return keys if keys is not None and len(keys) == 2 else ("image", "label")


def _load_splits(builder: Any, name: str, image_size: int | None, limit: int | None) -> Loaded:
    splits = builder.info.splits
    validation = next((split for split in VALIDATION_SPLITS if split in splits), None)
    for split in ("train", validation):
        if split and (split not in splits or not splits[split].num_examples):
            raise UserError(f"{name}: there are no images in the split {split}.")
    image, label = (builder.info.features[key] for key in _keys(builder))
    if image_size is None and None in image.shape:
        image_size = DEFAULT_SIZE
    if image_size is not None and image.shape[:2] == (image_size, image_size):
        image_size = None
    train = _to_arrays(builder, "train", image_size, limit)
    val = _to_arrays(builder, validation, image_size, limit) if validation else None
    return name, train, val, label.num_classes


def _to_arrays(builder: Any, split: str, image_size: int | None, limit: int | None) -> Arrays:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    image_key, label_key = _keys(builder)

    def fit(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = example[image_key], example[label_key]
        if image_size is not None:
            image = tf.image.resize(image, (image_size, image_size), antialias=True)
        return tf.cast(image, tf.float32), tf.cast(label, tf.int32)

    dataset = builder.as_dataset(split=split, shuffle_files=False)
    dataset = dataset.take(-1 if limit is None else limit)
    dataset = dataset.map(fit, num_parallel_calls=tf.data.AUTOTUNE).batch(512)
    images, labels = zip(*tfds.as_numpy(dataset), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
