"""Attention: Keras's layers, `ops.dot_product_attention`, and hand-written attention."""
