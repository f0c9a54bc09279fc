"""`calibrate`: scaling kernels until every layer's signal on data has a target second moment."""

from keras_varinit.calibration.calibrate import calibrate
from keras_varinit.calibration.report import CalibrationReport, CalibrationRow

__all__ = ["CalibrationReport", "CalibrationRow", "calibrate"]
