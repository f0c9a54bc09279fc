"""For tests of `examples/`, which they make importable: what a study leaves in its folder."""

import csv
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib import image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not EXAMPLES.exists():
    # They run outside the checkout, against the built wheel.
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))


def rows(out):
    """The lines of a study's history, as texts by name."""
    with (out / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_picture(path):
    """Refuses a plot that is small or has no coloured line."""
    pixels = image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 300
    # A plot without lines is white with grey and black; the first line's marker may be black too.
    coloured = np.ptp(pixels, axis=-1) > 0.2
    assert coloured.sum() > 200, f"{path.name} has no coloured line"


class Stop(keras.callbacks.Callback):
    """Interrupts once: in a batch of an epoch, or at an epoch's end."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.now = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.stop((self.now, batch))

    def on_epoch_end(self, epoch, logs=None):
        self.stop((epoch, None))

    def stop(self, place):
        if place == self.at:
            self.at = None
            raise KeyboardInterrupt


def record(seed, accuracy, loss=(1.0,), **settings):
    """A training of a study."""
    history = {"val_accuracy": list(accuracy), "loss": list(loss)}
    return {"settings": {**settings, "seed": seed}, "history": history, "seconds": 1.0}
