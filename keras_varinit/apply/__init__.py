"""Applying initializers to built models: injecting contexts, drawing kernels, linting."""
