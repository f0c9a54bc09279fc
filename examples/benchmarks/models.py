"""Time of `analyze`, `inject` and `initialize` on whole models, as ratios to that of building them.

    python examples/benchmarks/models.py [--repeats N] [--models NAME ...]

All are timed side by side in one process, builds until their weights are drawn. Each model is built
twice in every run, in turn first and second: with Keras's own initializers, and with kernels named
`asv_backward`. Both are analyzed (contexts and predicted signal); then the second is injected and
the first initialized. The last column is what NumPy's float32 normals take for as many weights in
as many threads, without which none is drawn. The medians of the paired ratios are printed with
their range; one whole run before them is not counted. The models of `keras.applications` are built
by their functions for Keras's initializers, and from their configurations for ours. Growth compares
plain networks of 1,000 and 100 layers.
"""

import argparse
import dataclasses
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_varinit as kv

# isort: split
from large_models import bare

L = keras.layers
# Builds a model with kernels of one initializer, or with None as Keras does.
Build = Callable[[str | None], keras.Model]

NAME = "asv_backward"
KERAS = "glorot_uniform"


def plain(depth: int, name: str | None) -> keras.Model:
    """A chain of small Dense layers."""
    x = inputs = keras.Input((16,))
    for _ in range(depth):
        x = L.Dense(16, activation="relu", kernel_initializer=name or KERAS)(x)
    return keras.Model(inputs, x)


def transformer(name: str | None, blocks: int = 12, width: int = 256) -> keras.Model:
    """Pre-norm blocks of attention and a GELU network."""
    options = {"kernel_initializer": name or KERAS}
    x = inputs = keras.Input((128, width))
    for _ in range(blocks):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(8, width // 8, **options)(y, y)])
        y = L.LayerNormalization()(x)
        y = L.Dense(4 * width, activation="gelu", **options)(y)
        x = L.Add()([x, L.Dense(width, **options)(y)])
    return keras.Model(inputs, x)


def application(function: str) -> Build:
    """A model of `keras.applications`."""
    make = getattr(keras.applications, function)
    template = make(weights=None)
    cls, config = type(template), template.get_config()
    return lambda name: make(weights=None) if name is None else cls.from_config(named(config))


MODELS: dict[str, Callable[[], Build]] = {
    "ResNet50": lambda: application("ResNet50"),
    "EfficientNetB0": lambda: application("EfficientNetB0"),
    "VGG16": lambda: application("VGG16"),
    "plain, 1,000 layers": lambda: lambda name: plain(1000, name),
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


def drawn(model: keras.Model) -> keras.Model:
    """The model once its weights are drawn, which JAX does in the background."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready([variable.value for variable in model.weights])
    return model


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


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one run; `own` is the model with Keras's initializers, `ours` that with ours."""

    build_own: float
    build_ours: float
    analyze_own: float
    analyze_ours: float
    inject: float
    initialize: float
    generator: float


def measure(build: Build, repeats: int) -> list[Times]:
    """Times of `repeats` runs after one uncounted run."""
    rows = []
    for repeat in range(repeats + 1):
        keras.utils.clear_session()
        built: dict[str | None, tuple[float, keras.Model]] = {}
        for name in (None, NAME) if repeat % 2 else (NAME, None):
            built[name] = timed(lambda: drawn(build(name)))  # noqa: B023 - called at once
        (build_own, own), (build_ours, ours) = built[None], built[NAME]
        analyze_own, _ = timed(lambda: kv.analyze(own))  # noqa: B023
        analyze_ours, _ = timed(lambda: kv.analyze(ours))  # noqa: B023
        injecting, report = timed(lambda: kv.inject(ours))  # noqa: B023
        if len(report.drawn) != len(report):
            raise RuntimeError(f"not every kernel was drawn:\n{report}")
        initializing, _ = timed(lambda: kv.initialize(own, NAME, seed=0))  # noqa: B023
        generating, _ = timed(lambda: bare(own.count_params()))  # noqa: B023
        if repeat:
            times = (
                *(build_own, build_ours, analyze_own, analyze_ours, injecting, initializing),
                generating,
            )
            rows.append(Times(*times))
    return rows


def ratio(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def line(name: str, rows: Sequence[Times]) -> str:
    """One line of the table."""
    own = statistics.median(row.build_own for row in rows)
    ours = statistics.median(row.build_ours for row in rows)
    ratios = [
        ratio([row.analyze_own / row.build_own for row in rows]),
        ratio([row.analyze_ours / row.build_ours for row in rows]),
        ratio([row.inject / row.build_ours for row in rows]),
        ratio([row.initialize / row.build_own for row in rows]),
        ratio([row.generator / row.build_own for row in rows]),
    ]
    return f"{name:<24}{own:8.2f}{ours:8.2f}  " + "  ".join(f"{each:<24}" for each in ratios)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each model")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    options = parser.parse_args()
    sys.setrecursionlimit(20_000)  # Keras recurses along a chain when it records a graph
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, NumPy {np.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; "
        f"{options.repeats} runs, median (range)"
    )
    print("build: seconds with Keras's own initializers, and with ours; ratios to either of them\n")
    heads = (
        *("analyze ÷ Keras's", "analyze ÷ ours", "inject ÷ ours", "initialize ÷ Keras's"),
        "generator ÷ Keras's",
    )
    print(f"{'model':<24}{'Keras’s':>8}{'ours':>8}  " + "  ".join(f"{h:<24}" for h in heads))
    for name in options.models:
        print(line(name, measure(MODELS[name](), options.repeats)), flush=True)
    if options.models == list(MODELS):
        small = measure(lambda name: plain(100, name), options.repeats)
        large = measure(lambda name: plain(1000, name), options.repeats)
        growth = [b.analyze_own / a.analyze_own for a, b in zip(small, large, strict=True)]
        print(f"analysis of 1,000 layers ÷ of 100 layers: {ratio(growth)}")


if __name__ == "__main__":
    main()
