"""Tests of `keras_varinit.analysis`."""
