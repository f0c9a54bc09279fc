"""Tests of `keras_varinit.apply`."""
