"""What the library reads off a model: the context of every kernel, and how its signal travels."""

from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.propagation import Prediction
from keras_varinit.analysis.result import Analysis, Reading
from keras_varinit.analysis.signals import Signal, Visit, signal_rule

__all__ = ["Analysis", "Prediction", "Reading", "Signal", "Visit", "read", "signal_rule"]
