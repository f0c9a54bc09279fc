"""Weight initializers for Keras 3 that know the model around a kernel."""

from keras_varinit.analysis import signal_rule
from keras_varinit.builtin import to_builtin
from keras_varinit.calibration import CalibrationReport, calibrate
from keras_varinit.callbacks import ContextInjector
from keras_varinit.context import LayerContext
from keras_varinit.diagnostics import SignalReport, measure_signal
from keras_varinit.initialization import initialize
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
from keras_varinit.injection import inject
from keras_varinit.lint import lint
from keras_varinit.monitor import SignalMonitor
from keras_varinit.prediction import analyze

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
