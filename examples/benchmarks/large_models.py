"""Time and memory of drawing large models, as ratios to NumPy's generator and to the model's size.

    KERAS_BACKEND=jax python examples/benchmarks/large_models.py [--million 400] [--repeats 3]
    XLA_FLAGS=--xla_force_host_platform_device_count=8 KERAS_BACKEND=jax \
        python examples/benchmarks/large_models.py --sharded

A chain of dense layers is built with Keras's own initializers and with ours, injected and
initialized. Times are beside what NumPy's float32 normals take in as many threads in the same
process, right after each step; the medians of the paired ratios are printed with their range. The
first row is the system's part of them: memory for the weights, to which the threads write once.
Memory is the greatest resident memory during a step less that before it, in units of the model's
size (Linux). With `--sharded`, one kernel is built on a mesh of all devices instead (JAX).
"""

import argparse
import concurrent.futures
import contextlib
import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_varinit as kv

_BLOCK = 2**16
_THREADS = min(8, os.cpu_count() or 1)

# Of a step: its name, seconds, seconds of the generator, and bytes at the peak.
Measured = tuple[str, float, float, int]


def bare(weights: int) -> float:
    """Seconds that NumPy's float32 normals take, again and again into one block per thread."""

    def fill(number: int) -> None:
        generator = np.random.Generator(np.random.PCG64(number))
        block = np.empty(_BLOCK, np.float32)
        for _ in range(weights // (_BLOCK * _THREADS)):
            generator.standard_normal(dtype=np.float32, out=block)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fill, range(_THREADS)))
    return time.perf_counter() - start


def fresh_memory(layers: int, width: int) -> list[np.ndarray]:
    """New arrays of the model's kernels, to which the same threads write."""
    kernels = []
    for _ in range(layers):
        kernels.append(np.empty((width, width), np.float32))
        parts = np.array_split(kernels[-1], _THREADS)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda part: part.fill(0), parts))
    return kernels


def chain(layers: int, width: int, name: str) -> keras.Model:
    """Dense layers of one width."""
    options = {"use_bias": False, "kernel_initializer": name}
    made = [keras.layers.Dense(width, "relu", **options) for _ in range(layers)]
    return keras.Sequential([keras.Input((width,)), *made])


def step(name: str, weights: int, action: Callable[[], Any]) -> tuple[Measured, Any]:
    """Measures an action and returns its result too."""
    gc.collect()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed, but not returned to the system
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    start = time.perf_counter()
    result = action()
    for variable in getattr(result, "weights", ()):  # what a backend computes in the background
        keras.ops.convert_to_numpy(variable[:1, :1])
    seconds = time.perf_counter() - start
    peak = _resident("VmHWM") - before
    return (name, seconds, bare(weights), peak), result


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def steps(layers: int, width: int) -> Iterator[Measured]:
    """Builds, injects and initializes."""
    weights = layers * width**2
    yield step("fresh memory", weights, lambda: fresh_memory(layers, width))[0]
    for name in ("glorot_uniform", "asv_forward"):
        keras.utils.clear_session()
        build = lambda name=name: chain(layers, width, name)  # noqa: E731
        measured, model = step(f"build with {name}", weights, build)
        yield measured
        if name == "asv_forward":
            measured, report = step("inject", weights, lambda model=model: kv.inject(model))
            if len(report.drawn) != layers:
                raise RuntimeError(f"not every kernel was drawn:\n{report}")
            yield measured
        for scheme in ("asv_forward", "he_normal") if name == "asv_forward" else ():
            initialize = lambda m=model, s=scheme: kv.initialize(m, s, seed=0)  # noqa: E731
            yield step(f"initialize, {scheme}", weights, initialize)[0]
        del model


def shown(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def whole_models(layers: int, width: int, repeats: int) -> None:
    """Prints the table of one device."""
    weights = layers * width**2
    print(f"{layers} dense layers of {width} x {width}: {weights / 1e6:.0f} M weights\n")
    list(steps(1, 128))
    times: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    builds: dict[str, list[float]] = {}
    for _ in range(repeats):
        by_keras = 0.0
        for name, seconds, generator, peak in steps(layers, width):
            by_keras = seconds if name == "build with glorot_uniform" else by_keras
            times.setdefault(name, []).append(seconds / generator)
            memory.setdefault(name, []).append(peak / (4 * weights))
            if by_keras:
                builds.setdefault(name, []).append(seconds / by_keras)
    print(f"{'step':<28}{'time / generator':<26}{'memory / model':<26}time / build by Keras")
    for name in times:
        columns = (shown(each[name]) for each in (times, memory, builds) if name in each)
        print(f"{name:<28}" + "".join(f"{column:<26}" for column in columns).rstrip())


def sharded_kernel(width: int, repeats: int) -> None:
    """Prints what one kernel takes on a mesh."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)
    print(f"one kernel of {width} x {width} weights in {len(devices)} shards\n")
    for name in ("asv_forward", "he_normal"):
        chain(1, 128, name)
        found = [
            step(name, width**2, lambda name=name: chain(1, width, name))[0] for _ in range(repeats)
        ]
        times = shown([seconds / generator for _, seconds, generator, _ in found])
        memory = shown([peak / (4 * width**2) for *_, peak in found])
        print(f"build with {name}: time / generator {times}, memory / kernel {memory}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--million", type=int, default=400, metavar="N", help="weights")
    parser.add_argument("--width", type=int, default=4096, metavar="N", help="units of a layer")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="counted runs")
    parser.add_argument("--sharded", action="store_true", help="one kernel on all devices")
    options = parser.parse_args()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, NumPy {np.__version__}, "
        f"{os.cpu_count()} cores, load {load}; {options.repeats} runs, median (range)"
    )
    if options.sharded:
        sharded_kernel(options.width, options.repeats)
    else:
        layers = max(1, round(options.million * 1e6 / options.width**2))
        whole_models(layers, options.width, options.repeats)


if __name__ == "__main__":
    main()
