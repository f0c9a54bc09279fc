"""Weight initializers for Keras 3 that know the model around a kernel."""

from keras_varinit.analysis import analyze
from keras_varinit.apply.callbacks import ContextInjector
from keras_varinit.apply.initialize import initialize
from keras_varinit.apply.inject import inject
from keras_varinit.apply.lint import lint
from keras_varinit.apply.to_builtin import to_builtin
from keras_varinit.calibration import CalibrationReport, calibrate
from keras_varinit.context import LayerContext
from keras_varinit.diagnostics import SignalReport, measure_signal
from keras_varinit.diagnostics.monitor import SignalMonitor
from keras_varinit.initializers import (
    ASVBackward,
    ASVForward,
    DepthScaled,
    Enhanced,
    EnhancedGlorotNormal,
    EnhancedGlorotUniform,
    EnhancedHeNormal,
    EnhancedHeUniform,
    EnhancedLecunNormal,
    EnhancedLecunUniform,
    SignalPreserving,
)
from keras_varinit.signals.registry import signal_rule

__version__ = "0.1.0"

__all__ = [
    "ASVBackward",
    "ASVForward",
    "CalibrationReport",
    "ContextInjector",
    "DepthScaled",
    "Enhanced",
    "EnhancedGlorotNormal",
    "EnhancedGlorotUniform",
    "EnhancedHeNormal",
    "EnhancedHeUniform",
    "EnhancedLecunNormal",
    "EnhancedLecunUniform",
    "LayerContext",
    "SignalMonitor",
    "SignalPreserving",
    "SignalReport",
    "analyze",
    "calibrate",
    "initialize",
    "inject",
    "lint",
    "measure_signal",
    "signal_rule",
    "to_builtin",
]
