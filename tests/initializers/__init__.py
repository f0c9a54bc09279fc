"""Tests of `keras_varinit.initializers`."""
