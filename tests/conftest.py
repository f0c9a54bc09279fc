"""Shared fixtures. The backend is the one of KERAS_BACKEND, as for any Keras program."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Two virtual CPU devices, so that distribution is tested on any machine. Read at first use.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import keras
import pytest


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts with the same automatic layer names, policies and random state."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="session")
def backend() -> str:
    return keras.backend.backend()
