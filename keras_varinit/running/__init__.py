"""Running a model on data without leaving a trace: what measuring and calibrating share."""
