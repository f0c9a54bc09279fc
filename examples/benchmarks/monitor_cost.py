"""What `SignalMonitor` costs: its share of training, at the default interval.

    python examples/benchmarks/monitor_cost.py [--epochs N] [--examples N] [--repeats N]

A ResNet-20 trains on random images with and without the monitor in turn, in one process. The share
by the monitor's own clock and the ratio of whole trainings are printed; the first leaves out the
first measurement, for which the model is read and the backend compiles, and says so.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_varinit as kv

L = keras.layers


def resnet20() -> keras.Model:
    """ResNet-20 of He et al. (2016) for 32×32 images."""
    inputs = keras.Input((32, 32, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, padding="same")(inputs)))
    for width in (16, 32, 64):
        for _ in range(3):
            strides = 2 if x.shape[-1] != width else 1
            y = L.Conv2D(width, 3, strides=strides, padding="same")(x)
            y = L.ReLU()(L.BatchNormalization()(y))
            y = L.BatchNormalization()(L.Conv2D(width, 3, padding="same")(y))
            x = L.Conv2D(width, 1, strides=2)(x) if strides == 2 else x
            x = L.ReLU()(L.Add()([x, y]))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def train(epochs: int, examples: int, monitored: bool) -> tuple[float, kv.SignalMonitor | None]:
    """Seconds of `fit`, the first epoch left out as a warm-up of the backend."""
    keras.utils.clear_session()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, examples)
    model = resnet20()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=64, epochs=1, verbose=0)
    monitor = kv.SignalMonitor((x[:32], y[:32])) if monitored else None
    start = time.perf_counter()
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=[monitor] if monitor else [])
    return time.perf_counter() - start, monitor


def main() -> None:
    """Prints the share of each repeat."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    for repeat in range(options.repeats):
        without, _ = train(options.epochs, options.examples, False)
        seconds, monitor = train(options.epochs, options.examples, True)
        if monitor is None:
            raise RuntimeError("no monitor")
        ratios.append((seconds - monitor.setup_seconds) / without)
        print(
            f"{repeat + 1}: {len(monitor.history['time'])} measurements of "
            f"{len(monitor.report)} rows, {100 * monitor.fraction:.1f} % of training; first "
            f"measurement {monitor.setup_seconds:.1f} s; whole training {seconds:.1f} s with, "
            f"{without:.1f} s without",
            flush=True,
        )
    print(f"with ÷ without, the first measurement left out: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    sys.exit(main())
