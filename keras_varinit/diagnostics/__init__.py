"""What a model does to signals on data: `measure_signal`, its report and `SignalMonitor`."""

from keras_varinit.diagnostics.measure import Meter, measure_signal
from keras_varinit.diagnostics.report import SignalReport, SignalRow

__all__ = ["Meter", "SignalReport", "SignalRow", "measure_signal"]
