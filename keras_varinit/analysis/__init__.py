"""What is read off a model: the context of every kernel, and how its signal travels."""

from keras_varinit.analysis.analyze import analyze
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.predict import Prediction
from keras_varinit.analysis.result import Analysis, Reading

__all__ = ["Analysis", "Prediction", "Reading", "analyze", "read"]
