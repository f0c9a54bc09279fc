"""The mathematics: moments, covariances, quadratures and fans; NumPy alone, no Keras."""
