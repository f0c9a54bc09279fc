"""Progress of many trainings: bars in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

import keras
import tqdm

#: Outside a terminal, a long run prints its epoch at most this often.
SECONDS_BETWEEN_LINES = 30


def overall_bar(total: int) -> tqdm.tqdm:
    """Returns a bar that counts runs; it shows itself in a terminal only.

    Args:
        total: The number of runs.
    """
    return tqdm.tqdm(
        total=total, desc="runs", unit="run", position=0, disable=None, dynamic_ncols=True
    )


class EpochBar(keras.callbacks.Callback):
    """Shows one run's epochs as a bar, or as lines where standard error is no terminal.

    Args:
        label: What is trained, shown before the bar.
        epochs: The number of epochs.
    """

    def __init__(self, label: str, epochs: int) -> None:
        super().__init__()
        self._label = label
        self._epochs = epochs
        self._bar: tqdm.tqdm | None = None
        self._last_line = 0.0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Opens the bar."""
        self._last_line = time.monotonic()
        self._bar = tqdm.tqdm(
            total=self._epochs,
            desc=self._label,
            unit="epoch",
            position=1,
            leave=False,
            disable=None,
            dynamic_ncols=True,
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Moves the bar on, or prints a line."""
        loss, accuracy = (logs[key] for key in ("loss", "val_accuracy"))
        self._bar.set_postfix_str(f"loss {loss:.3f}, val. {accuracy:.3f}", refresh=False)
        self._bar.update(epoch + 1 - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(
                f"  {self._label}: epoch {epoch + 1} of {self._epochs}, "
                f"loss {loss:.3f}, validation accuracy {accuracy:.3f}",
                flush=True,
            )

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Closes the bar."""
        self._bar.close()
