"""Shared fixtures. The backend is the one of KERAS_BACKEND, as for any Keras program."""

import gc
import importlib.util
import os
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Two virtual CPU devices, so that distribution is tested on any machine. Read at first use.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
# Of the random runs; set here so that the worker processes have the same.
os.environ.setdefault("NEVER_LOST_SEED", str(random.SystemRandom().randrange(2**32)))

import keras
import pytest
from hypothesis import HealthCheck, settings

# Modules of helpers that import what only the extra `hub` installs; doctests are looked for there.
_NEEDS = {
    "keras_hub": (*("hub_backbones.py", "hub_data.py", "hub_models.py", "hub_table.py"),),
    "medicai": ("package_models.py",),
    "tcn": ("package_models.py",),
}
collect_ignore = [
    f"others/{name}"
    for package, names in _NEEDS.items()
    if importlib.util.find_spec(package) is None
    for name in names
]

_SLOW_MODELS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=60, derandomize=True, **_SLOW_MODELS)
settings.register_profile("brief", max_examples=15, derandomize=True, **_SLOW_MODELS)
settings.register_profile("long", max_examples=600, print_blob=True, **_SLOW_MODELS)
settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption(
        "--other-backend",
        action="store_true",
        help="the suite ran on another backend before: leave out the tests marked `once`",
    )


def pytest_collection_modifyitems(config, items):
    """Leaves out what is marked for other backends than this one."""
    backend = keras.backend.backend()
    left_out = [
        item
        for item in items
        if (config.getoption("--other-backend") and item.get_closest_marker("once"))
        or any(backend in marker.args for marker in item.iter_markers("not_on"))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_report_header() -> str:
    return f"NEVER_LOST_SEED={os.environ['NEVER_LOST_SEED']}"


@pytest.fixture(autouse=True, scope="module")
def _settled_heap():
    """`clear_session` collects garbage, and need not go through the backends' own objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts with the same automatic layer names, policies and random state."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(autouse=True, scope="session")
def _failing_rules_raise():
    """Users see a note where a rule of the engine fails; tests see the error."""
    from keras_varinit.analysis import propagate

    propagate.RAISES = True


@pytest.fixture(scope="session")
def backend() -> str:
    return keras.backend.backend()
