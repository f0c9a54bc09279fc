"""Weight initializers for Keras 3 that know the model around a kernel."""

from keras_varinit import startup  # noqa: F401 - before Keras is imported
from keras_varinit.analysis import Analysis, AnalysisRow, Prediction, analyze
from keras_varinit.apply.callbacks import ContextInjector
from keras_varinit.apply.initialize import initialize
from keras_varinit.apply.inject import inject
from keras_varinit.apply.lint import Finding, Findings, lint
from keras_varinit.apply.neutral import watch_trainings as _watch_trainings
from keras_varinit.apply.recommend import Recommendation, Recommendations, recommend
from keras_varinit.apply.report import Report, ReportRow
from keras_varinit.apply.to_builtin import to_builtin
from keras_varinit.apply.weightless import create_weights, without_weights
from keras_varinit.calibration import CalibrationReport, CalibrationRow, calibrate
from keras_varinit.context import LayerContext
from keras_varinit.diagnostics import SignalReport, SignalRow, measure_signal
from keras_varinit.diagnostics.monitor import SignalMonitor
from keras_varinit.initializers import (
    ASVBackward,
    ASVForward,
    BranchEndZeros,
    ChronoBias,
    DepthScaled,
    Enhanced,
    EnhancedGlorotNormal,
    EnhancedGlorotUniform,
    EnhancedHeNormal,
    EnhancedHeUniform,
    EnhancedLecunNormal,
    EnhancedLecunUniform,
    FanInBias,
    Isometric,
    Mimetic,
    PartialIdentity,
    Recommended,
    ResidualScaled,
    SignalPreserving,
)
from keras_varinit.results import Results, Row
from keras_varinit.signals.outcome import Gradient, Outcome, Signal, Visit
from keras_varinit.signals.registry import signal_rule

__version__ = "0.1.0"

_watch_trainings()

__all__ = [
    "ASVBackward",
    "ASVForward",
    "Analysis",
    "AnalysisRow",
    "BranchEndZeros",
    "CalibrationReport",
    "CalibrationRow",
    "ChronoBias",
    "ContextInjector",
    "DepthScaled",
    "Enhanced",
    "EnhancedGlorotNormal",
    "EnhancedGlorotUniform",
    "EnhancedHeNormal",
    "EnhancedHeUniform",
    "EnhancedLecunNormal",
    "EnhancedLecunUniform",
    "FanInBias",
    "Finding",
    "Findings",
    "Gradient",
    "Isometric",
    "LayerContext",
    "Mimetic",
    "Outcome",
    "PartialIdentity",
    "Prediction",
    "Recommendation",
    "Recommendations",
    "Recommended",
    "Report",
    "ReportRow",
    "ResidualScaled",
    "Results",
    "Row",
    "Signal",
    "SignalMonitor",
    "SignalPreserving",
    "SignalReport",
    "SignalRow",
    "Visit",
    "analyze",
    "calibrate",
    "create_weights",
    "initialize",
    "inject",
    "lint",
    "measure_signal",
    "recommend",
    "signal_rule",
    "to_builtin",
    "without_weights",
]
