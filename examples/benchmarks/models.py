"""Time of `analyze` and `inject` on whole models, as ratios to the time of building them.

    python examples/benchmarks/models.py [--repeats N]

All three are timed side by side in one process: a model is built with kernels named `asv_backward`,
then analyzed (contexts and predicted signal), then injected; the medians of the paired ratios are
printed with their range. Growth compares plain networks of 1,000 and 100 layers.
"""

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_varinit as kv

L = keras.layers
Build = Callable[[], keras.Model]


NAME = "asv_backward"


def plain(depth: int) -> keras.Model:
    """A chain of small Dense layers."""
    x = inputs = keras.Input((16,))
    for _ in range(depth):
        x = L.Dense(16, activation="relu", kernel_initializer=NAME)(x)
    return keras.Model(inputs, x)


def transformer(blocks: int = 12, width: int = 256) -> keras.Model:
    """Pre-norm blocks of attention and a GELU network."""
    x = inputs = keras.Input((128, width))
    for _ in range(blocks):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(8, width // 8, kernel_initializer=NAME)(y, y)])
        y = L.LayerNormalization()(x)
        y = L.Dense(4 * width, activation="gelu", kernel_initializer=NAME)(y)
        x = L.Add()([x, L.Dense(width, kernel_initializer=NAME)(y)])
    return keras.Model(inputs, x)


def application(name: str) -> Build:
    """A model of `keras.applications`, built from its configuration with our initializer."""
    template = getattr(keras.applications, name)(weights=None)
    cls, config = type(template), template.get_config()
    return lambda: cls.from_config(named(config))


MODELS: dict[str, Callable[[], Build]] = {
    "ResNet50": lambda: application("ResNet50"),
    "EfficientNetB0": lambda: application("EfficientNetB0"),
    "VGG16": lambda: application("VGG16"),
    "plain, 1,000 layers": lambda: lambda: plain(1000),
    "transformer, 12 blocks": lambda: transformer,
}


def named(config: Any) -> Any:
    """A configuration with every kernel's initializer replaced by a string id of ours."""
    if isinstance(config, dict):
        return {
            key: NAME
            if key in ("kernel_initializer", "depthwise_initializer", "pointwise_initializer")
            else named(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(named(value) for value in config)
    return config


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and its result; without garbage collections, as in `timeit`."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result
    finally:
        gc.enable()


def measure(build: Build, repeats: int) -> list[tuple[float, float, float]]:
    """Seconds of build, analyze and inject, `repeats` times after one uncounted run."""
    rows = []
    for repeat in range(repeats + 1):
        keras.utils.clear_session()
        building, model = timed(build)
        analyzing, _ = timed(lambda: kv.analyze(model))  # noqa: B023 - called at once
        injecting, report = timed(lambda: kv.inject(model))  # noqa: B023
        if len(report.drawn) != len(report):
            raise RuntimeError(f"not every kernel was drawn:\n{report}")
        if repeat:
            rows.append((building, analyzing, injecting))
    return rows


def ratio(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each model")
    repeats = parser.parse_args().repeats
    sys.setrecursionlimit(20_000)  # Keras recurses along a chain when it records a graph
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, NumPy {np.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; "
        f"{repeats} runs, median (range)"
    )
    print(f"{'model':<24}{'build, s':>9}  {'analyze ÷ build':<26}  inject ÷ build")
    for name, make in MODELS.items():
        rows = measure(make(), repeats)
        build = statistics.median(row[0] for row in rows)
        analyze = ratio([row[1] / row[0] for row in rows])
        inject = ratio([row[2] / row[0] for row in rows])
        print(f"{name:<24}{build:9.2f}  {analyze:<26}  {inject}", flush=True)
    small = measure(lambda: plain(100), repeats)
    large = measure(lambda: plain(1000), repeats)
    growth = [b[1] / a[1] for a, b in zip(small, large, strict=True)]
    print(f"analysis of 1,000 layers ÷ of 100 layers: {ratio(growth)}")


if __name__ == "__main__":
    main()
