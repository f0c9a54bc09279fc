"""Tests of `keras_varinit.diagnostics`."""
