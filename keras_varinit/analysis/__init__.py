"""Analysis of models: the context of every kernel, and predictions of its signal."""

from keras_varinit.analysis.analyze import analyze
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.predict import Prediction
from keras_varinit.analysis.result import Analysis, AnalysisRow, Reading

__all__ = ["Analysis", "AnalysisRow", "Prediction", "Reading", "analyze", "read"]
