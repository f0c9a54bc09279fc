"""The mathematics: moments, covariances, quadrature and fans; NumPy alone, no Keras."""
