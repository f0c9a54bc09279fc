"""Callbacks for `fit`."""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_varinit.apply.inject import NothingToInjectError, inject
from keras_varinit.apply.neutral import settle
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

    A model without initializers of this library, such as a baseline in a loop over initializers, is
    trained as it is, with one warning, or stops with `strict=True`.

    Args:
        verbose: 0 for silence, 1 to print the report.
        strict: Whether a model that has nothing to inject is an error. Defaults to False.

    Attributes:
        report: The `Report` of the injection; None before training, on a resumed model, and if
            there was nothing to inject.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; when training begins, what
            `inject` raises.

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

    def __init__(self, verbose: int = 0, *, strict: bool = False) -> None:
        super().__init__()
        arguments = Arguments("ContextInjector")
        allowed = is_integer(verbose) and verbose in (0, 1)
        arguments.require(allowed, "verbose", verbose, "0 or 1")
        arguments.flag("strict", strict)
        self.verbose, self.strict = verbose, strict
        self._warned = False
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
        try:
            self.report = inject(self.model)
        except NothingToInjectError as error:
            if self.strict:
                raise
            settle(self.model)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"ContextInjector: {error} The model is trained as it is; strict=True makes "
                    "this an error.",
                    stacklevel=2,
                )
            return
        if self.verbose:
            print(self.report)
