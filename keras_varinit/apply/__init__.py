"""Initializers applied to models: contexts given, kernels drawn, findings reported."""
