"""Scaling kernels until a model's signal on data has the wanted size: `calibrate`."""

from keras_varinit.calibration.calibrate import calibrate
from keras_varinit.calibration.report import CalibrationReport, CalibrationRow

__all__ = ["CalibrationReport", "CalibrationRow", "calibrate"]
