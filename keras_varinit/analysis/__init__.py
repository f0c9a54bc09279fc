"""What the library reads off a model: the context of every kernel."""

from keras_varinit.analysis.contexts import Analysis, analyze

__all__ = ["Analysis", "analyze"]
