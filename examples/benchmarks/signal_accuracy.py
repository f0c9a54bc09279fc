"""How far the predicted signal is from the measured one, layer by layer.

    python examples/benchmarks/signal_accuracy.py [--networks …] [--initializers …]
        [--width N] [--draws N] [--error SHARE] [--out FOLDER]

For each network and initializer the kernels are drawn until every layer's mean has a standard error
below `--error`, at most `--draws` times. For every weight layer the second moments of its output
and of its gradient are measured on unit white noise and averaged over the draws; the table has the
layer at which prediction ÷ measurement is worst, with the standard error of that layer's mean, and
the range of the measured second moments over the layers. Gradients are relative to the last
layer's. Layers whose mean has a greater standard error than `--error` are left out of the worst:
there the mean is heavy-tailed at this width and depth, and more draws or a greater width are needed
to tell. The number of layers that are left in stands behind it.
"""

import argparse
import csv
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from accuracy_networks import NETWORKS

import keras_varinit as kv


def independent(context: kv.LayerContext) -> Any:
    """1/(fan_in·τ): positions independent, borders ignored."""
    return keras.initializers.RandomNormal(
        stddev=(context.fan_in * max(context.forward_gain, 1e-9)) ** -0.5, seed=0
    )


INITIALIZERS: dict[str, Any] = {
    "he_normal": "he_normal",
    "lecun_normal": "lecun_normal",
    "asv_forward": "asv_forward",
    "independent": independent,
    "signal_preserving": "signal_preserving",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table; factors are prediction ÷ measurement at the worst layer."""

    network: str
    initializer: str
    forward: float
    forward_layer: str
    forward_error: float
    forward_layers: int
    backward: float
    backward_layer: str
    backward_error: float
    backward_layers: int
    layers: int
    least: float
    greatest: float
    draws: int


FEWEST_DRAWS = 12


def measure(
    model: keras.Model, scheme: Any, draws: int, error: float, examples: int
) -> dict[str, np.ndarray]:
    """Per kernel: (draws, 2) second moments of output and gradient."""
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(draws):
        if draw >= FEWEST_DRAWS and max(map(_largest_error, found.values())) < error:
            break
        kv.initialize(model, scheme, seed=draw)
        noise = np.random.default_rng(draw).standard_normal((examples, *model.input_shape[1:]))
        signal = kv.measure_signal(model, noise.astype("float32"), batch_size=examples, verbose=0)
        for row in signal:
            if row.kind == "weights" and row.operation != "MultiHeadAttention":
                pair = (row.second_moment, row.gradient_second_moment or np.nan)
                found.setdefault(row.path, []).append(pair)
    measured = {path: np.array(values) for path, values in found.items()}
    last = next(reversed(measured.values()))[:, 1].mean()
    return {path: values / [1.0, last] for path, values in measured.items()}


def _largest_error(values: Sequence[tuple[float, float]]) -> float:
    """The greater relative standard error of the two means."""
    return float(np.max(_errors(np.array(values))))


def _errors(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / np.sqrt(len(values)) / values.mean(axis=0)


def compare(
    network: str, initializer: str, width: int, draws: int, error: float, examples: int
) -> Line:
    """Predicts and measures one network under one initializer."""
    keras.utils.clear_session()
    model, scheme = NETWORKS[network](width), INITIALIZERS[initializer]
    kv.initialize(model, scheme, seed=0)
    predicted = kv.analyze(model).predicted
    measured = measure(model, scheme, draws, error, examples)
    rows = []
    last = predicted[next(reversed(measured))].backward or np.nan
    for path, values in measured.items():
        if path not in predicted:
            continue
        mean, errors = values.mean(axis=0), _errors(values)
        forward = (predicted[path].forward or np.nan) / mean[0]
        backward = (predicted[path].backward or np.nan) / last / mean[1]
        rows.append((path, forward, errors[0], backward, errors[1], mean[0]))
    ahead = [(row[1], row[0], row[2]) for row in rows if row[2] <= error]
    back = [(row[3], row[0], row[4]) for row in rows if row[4] <= error]
    means = [row[5] for row in rows]
    return Line(
        network,
        initializer,
        *_worst(ahead),
        len(ahead),
        *_worst(back),
        len(back),
        len(rows),
        min(means),
        max(means),
        len(next(iter(measured.values()))),
    )


def _worst(factors: Sequence[tuple[float, str, float]]) -> tuple[float, str, float]:
    """The factor farthest from 1, its layer, and its standard error."""
    return max(factors, key=lambda f: abs(np.log(f[0])), default=(np.nan, "", np.nan))


def main() -> None:
    """Prints the table, a line at a time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument(
        "--initializers",
        nargs="+",
        default=["he_normal", "signal_preserving"],
        choices=list(INITIALIZERS),
    )
    parser.add_argument("--width", type=int, default=256, help="channels (default 256)")
    parser.add_argument(
        "--draws", type=int, default=200, help="at most so many draws of the weights (default 200)"
    )
    parser.add_argument(
        "--error", type=float, default=0.03, help="relative standard error (default 0.03)"
    )
    parser.add_argument("--examples", type=int, default=2, help="inputs per draw (default 2)")
    parser.add_argument("--out", type=Path, help="folder for signal_accuracy.csv")
    options = parser.parse_args()
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, Python "
        f"{platform.python_version()}; width {options.width}, at most {options.draws} draws "
        f"of {options.examples} inputs each\n"
        f"{'network':<20}{'initializer':<19}{'forward':>7} ±se %  layers "
        f"{'backward':>8} ±se %  layers  "
        f"{'measured E u²':<22} draws"
    )
    lines = []
    for network in options.networks:
        for initializer in options.initializers:
            start = time.perf_counter()
            examples = max(options.examples, 64) if "batchnorm" in network else options.examples
            line = compare(
                network, initializer, options.width, options.draws, options.error, examples
            )
            lines.append(line)
            total = line.layers
            print(
                f"{network:<20}{initializer:<19}{line.forward:7.3f} "
                f"{100 * line.forward_error:4.1f}  {line.forward_layers:3}/{total:<3} "
                f"{line.backward:8.3f} {100 * line.backward_error:4.1f}  "
                f"{line.backward_layers:3}/{total:<3} "
                f"{line.least:9.3g} to {line.greatest:<9.3g} {line.draws:5}"
                f"{time.perf_counter() - start:6.0f} s",
                flush=True,
            )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "signal_accuracy.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Line)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(line) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
