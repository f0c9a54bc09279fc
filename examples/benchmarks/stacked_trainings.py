"""Whether many small trainings are faster together: the panel's networks on this machine.

    KERAS_BACKEND=jax python examples/benchmarks/stacked_trainings.py [--families NAME ...]

A training step is compiled alone, for some trainings stacked by `jax.vmap`, and for some steps
joined by `jax.lax.scan`. The three take turns in one process; printed are the time of one step of
one training alone and, for the other two, the median and range of their ratio to it: below 1 is
faster. All three must arrive at the same weights, or the benchmark ends with an error.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import keras
import numpy as np
from panel_families import work
from panel_families.settings import Setting

RATE = np.float32(1e-3)


def seconds(run: Callable[[], Any]) -> float:
    """Of one call, results included."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def check(one: Any, other: Any, what: str) -> None:
    """Raises if two states differ by more than rounding does in a few steps."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        scale = float(jnp.max(jnp.abs(a))) + 1e-3
        if float(jnp.max(jnp.abs(a - b))) > 1e-2 * scale:
            raise RuntimeError(f"{what} trains to other weights.")


def measure(setting: Setting, count: int, repeats: int) -> str:
    """A line of the table.

    Args:
        setting: The network.
        count: Trainings that are stacked, and steps that are joined.
        repeats: How often each is timed.
    """
    population = work.population(setting)
    model = setting.build()
    states = []
    for seed in range(count):
        work.apply_scheme(model, "he_normal", seed)
        states.append(population.start(model.get_weights()))
    rng = np.random.default_rng(0)
    rows = rng.integers(len(setting.task().train[0]), size=(count, setting.batch_size))
    x, y = (np.asarray(part[rows]) for part in setting.task().train)

    def joined(state: Any, x: Any, y: Any) -> Any:
        return jax.lax.scan(lambda s, xy: population.step(s, *xy, RATE), state, (x, y))[0]

    alone = jax.jit(lambda state, x, y: population.step(state, x, y, RATE)[0])
    stacked = jax.jit(jax.vmap(alone))
    joined = jax.jit(joined)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def steps() -> Any:
        state = states[0]
        for n in range(count):
            state = alone(state, x[n], y[n])
        return state

    runs = {"alone": steps, "stacked": lambda: stacked(together, x, y)}
    runs["joined"] = lambda: joined(states[0], x, y)
    results = {name: run() for name, run in runs.items()}
    last = jax.tree.map(lambda leaf: leaf[-1], results["stacked"])
    check(alone(states[-1], x[-1], y[-1]), last, "stacked")
    check(results["alone"], results["joined"], "joined")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    cells = [f"{setting.family:<16}", f"{1e3 * statistics.median(times['alone']) / count:8.2f}"]
    for name in ("stacked", "joined"):
        ratios = [a / b for a, b in zip(times[name], times["alone"], strict=True)]
        cells.append(f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return " | ".join(cells)


def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    families = ["small-mlp", "deep-mlp-relu", "plain-cnn", "resnet", "vit", "gru-pixels"]
    parser.add_argument("--families", nargs="+", default=families, metavar="NAME")
    parser.add_argument("--count", type=int, default=4, help="trainings or steps (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(
        f"{'family':<16} | ms alone | {options.count} stacked ÷ alone   | "
        f"{options.count} joined ÷ alone"
    )
    for family in options.families:
        setting = work.find_setting(f"{family}-choice", "cpu")
        print(measure(setting, options.count, options.repeats), flush=True)
    print(f"Keras {keras.__version__}, JAX {jax.__version__}, {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
