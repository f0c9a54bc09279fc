"""Weights of which a host, or a device, has a part only."""
