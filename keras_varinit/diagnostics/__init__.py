"""Activations and gradients of a model on data: `measure_signal` and `SignalMonitor`."""

from keras_varinit.diagnostics.measure import Meter, measure_signal
from keras_varinit.diagnostics.report import SignalReport, SignalRow

__all__ = ["Meter", "SignalReport", "SignalRow", "measure_signal"]
