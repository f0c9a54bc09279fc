"""The options `--data` and `--data-dir`, which mean the same in every app."""

from __future__ import annotations

import argparse
import pathlib

from common.errors import UserError

LAYOUT = "train/<class>/*.png (or .jpg) and val/<class>/*.png (or test/<class>/*.png)"

#: Folders of images to validate on, in the order in which they are looked for.
VALIDATION_SPLITS = ("validation", "val", "test")

#: Endings of the files that are read.
ENDINGS = (".jpg", ".jpeg", ".png")

DATA = (
    "digits (8×8, part of scikit-learn), folder, or the name of any image classification data set "
    "of TensorFlow Datasets: fashion_mnist, cifar10, cifar100, ..."
)

DATA_DIR = (
    "alone or with --data folder: your images, which are train/<class>/*.png (or .jpg) and val/ or "
    "test/ alike; with a data set of TensorFlow Datasets: where it keeps its data"
)


def settle(options: argparse.Namespace, default: str) -> None:
    """Fills in `options.data` where it is None, and checks it together with `options.data_dir`.

    Args:
        options: From a command line.
        default: The data set of a command line that names none, and no folder either.

    Raises:
        UserError: The options contradict each other, or the folder is not one of images.
    """
    if options.data is None:
        options.data = default if options.data_dir is None else "folder"
    if options.data == "digits" and options.data_dir is not None:
        raise UserError(
            "--data digits comes with scikit-learn and takes no --data-dir. Leave out --data to "
            "read the images of that folder."
        )
    if options.data == "folder":
        check_folder(options.data_dir)


def check_folder(data_dir: str | None) -> pathlib.Path:
    """The folder that `--data-dir` names, if it is laid out as it must be.

    Args:
        data_dir: The option's value.

    Raises:
        UserError: It is not.
    """
    if data_dir is None:
        raise UserError(f"--data folder needs --data-dir FOLDER, laid out as {LAYOUT}.")
    folder = pathlib.Path(data_dir).expanduser()
    layout = f"Lay it out as {LAYOUT}."
    if not folder.is_dir():
        raise UserError(f"--data-dir {data_dir}: there is no such folder. {layout}")
    if not (folder / "train").is_dir():
        raise UserError(
            f"--data-dir {data_dir}: there is no folder train in it. {layout} If it is where "
            "TensorFlow Datasets keeps its data, name the data set with --data."
        )
    split = validation_split(folder)
    for name in ("train", *([split] if split else [])):
        if not any(path.suffix.lower() in ENDINGS for path in (folder / name).glob("*/*")):
            raise UserError(f"--data-dir {data_dir}: no images in {name}/<class>/. {layout}")
    return folder


def validation_split(folder: pathlib.Path) -> str | None:
    """The name of the folder of images to validate on, or None.

    Args:
        folder: What `--data-dir` names.
    """
    return next((name for name in VALIDATION_SPLITS if (folder / name).is_dir()), None)
