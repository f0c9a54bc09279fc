"""Tests of `keras_varinit.calibration`."""
