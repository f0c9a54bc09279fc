"""Attention: Keras's layers, the fused operation, and attention written by hand."""
