"""Models that others wrote: KerasHub, keras.applications and PyPI packages."""
