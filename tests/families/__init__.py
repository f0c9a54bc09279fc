"""Tests of `keras_varinit.families`."""
