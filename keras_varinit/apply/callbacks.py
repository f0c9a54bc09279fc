"""Callbacks for `fit`."""

from collections.abc import Callable
from typing import Any

import keras

from keras_varinit.apply.inject import inject
from keras_varinit.apply.report import Report
from keras_varinit.arguments import Arguments, is_integer
from keras_varinit.keras_private import before_first_step
from keras_varinit.tensors import training_steps


class ContextInjector(keras.callbacks.Callback):
    """Injects contexts once, when training begins; see `inject`.

    A model that is not built by then, such as a `Sequential` without an input, is first built from
    the shapes of the data. Trained or loaded models are left alone: nothing happens once the
    optimizer has taken a step, and kernels that differ from their initializer's own draw are
    skipped. The callback may therefore precede or follow `BackupAndRestore`, and may stay in place
    when training is resumed.

    Args:
        verbose: 0 for silence, 1 to print the report.

    Attributes:
        report: The `Report` of the injection; None before training and on a resumed model.

    Example:
        >>> import keras, keras_varinit as kv, numpy as np
        >>> layers = [keras.Input((8,)), keras.layers.Dense(1, kernel_initializer="asv_backward")]
        >>> model = keras.Sequential(layers)
        >>> model.compile("sgd", "mse")
        >>> injector = kv.ContextInjector()
        >>> x = np.ones((4, 8)), np.ones((4, 1))
        >>> _ = model.fit(*x, callbacks=[injector], verbose=0)
        >>> len(injector.report.drawn)
        1
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__()
        allowed = is_integer(verbose) and verbose in (0, 1)
        Arguments("ContextInjector").require(allowed, "verbose", verbose, "0 or 1")
        self.verbose = verbose
        self.report: Report | None = None
        self._cancel: Callable[[], None] = lambda: None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Injects, unless the optimizer has already taken a step."""
        if training_steps(self.model) > 0:
            return
        if self.model.built:
            self._inject()
        else:
            self._cancel = before_first_step(self.model, self._inject)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Cancels an injection that is still waiting for the first training step."""
        self._cancel()

    def _inject(self) -> None:
        self.report = inject(self.model)
        if self.verbose:
            print(self.report)
