"""Tests of `keras_varinit.maths`."""
