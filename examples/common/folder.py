"""Image files of a folder as arrays."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import pathlib
import random
from collections.abc import Sequence

import numpy as np
import tqdm
from PIL import Image

from common.data_options import ENDINGS, check_folder, validation_split
from common.errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]
#: Name, training images and labels, validation images and labels if there are any, classes.
Loaded = tuple[str, Arrays, Arrays | None, int]

#: The side of images when the user names none.
DEFAULT_SIZE = 32


def load(data_dir: str | None, image_size: int | None, limit: int | None) -> Loaded:
    """Loads image files laid out as `train/<class>/*.png` and `val/<class>/*.png`.

    Their order is random and always the same, so that `limit` keeps images of every class.

    Args:
        data_dir: The folder that holds `train` and `val` (or `validation`, or `test`).
        image_size: The side to resize images to; `None` means `DEFAULT_SIZE`.
        limit: The most images to read of each split.

    Returns:
        The folder's name, arrays of training and of validation images (three channels, values
        from 0 to 255), number of classes.

    Raises:
        UserError: When the folder is not laid out so, or a file cannot be read.
    """
    folder = check_folder(data_dir)
    validation = validation_split(folder)
    splits = ["train", *([validation] if validation else [])]
    files = {split: _files(folder / split) for split in splits}
    classes = sorted({path.parent.name for paths in files.values() for path in paths})
    labels = {name: label for label, name in enumerate(classes)}

    def arrays(split: str) -> Arrays:
        paths = files[split]
        random.Random(split).shuffle(paths)
        paths = paths[:limit]
        y = np.array([labels[path.parent.name] for path in paths], "int32")
        return _read(paths, folder, image_size or DEFAULT_SIZE), y

    val = arrays(validation) if validation else None
    return folder.resolve().name, arrays("train"), val, len(classes)


def _files(split: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in split.glob("*/*") if path.suffix.lower() in ENDINGS)


def _read(paths: Sequence[pathlib.Path], folder: pathlib.Path, side: int) -> np.ndarray:
    images = np.empty((len(paths), side, side, 3), "float32")
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        found = pool.map(functools.partial(_image, folder=folder, side=side), paths)
        bar = tqdm.tqdm(found, "images", len(paths), leave=False, disable=None, unit="image")
        for number, image in enumerate(bar):
            images[number] = image
    return images


def _image(path: pathlib.Path, *, folder: pathlib.Path, side: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            # Decodes a large JPEG at half, a quarter or an eighth of its size.
            image.draft("RGB", (2 * side, 2 * side))
            if image.mode.startswith("I"):
                # Sixteen bits a channel, which `convert` would cut off at 255.
                image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
            image = image.convert("RGB")
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = path.relative_to(folder)
        raise UserError(f"--data-dir {folder}: {name} cannot be read as an image.") from error
