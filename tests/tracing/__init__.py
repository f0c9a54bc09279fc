"""Tests of `keras_varinit.tracing`."""
