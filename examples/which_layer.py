"""Which layer kills my signal: predicts, measures and plots a plain network, layer by layer.

    python examples/which_layer.py [--pool average] [--initializer asv_forward] [--out FOLDER]

The network is 20 convolutions of 64 channels with ReLU on 32×32 images of white noise, pooled 2×2
after layers 5, 10 and 15. The report goes to the screen, the plot to `FOLDER/which_layer.png`.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_varinit as kv

POOLS = {"average": keras.layers.AveragePooling2D, "max": keras.layers.MaxPooling2D}


def plain_network(pool: str) -> keras.Model:
    """20 convolutions with three poolings between them."""
    x = inputs = keras.Input((32, 32, 3))
    for number in range(1, 21):
        name = f"conv_{number}"
        x = keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=name)(x)
        if number in (5, 10, 15):
            x = POOLS[pool](2, name=f"pool_{number}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))


def main() -> None:
    """Measures, prints and plots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", choices=list(POOLS), default="average")
    parser.add_argument("--initializer", default="asv_forward", help="any name that Keras knows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=32, help="white-noise images")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    model = plain_network(options.pool)
    kv.initialize(model, options.initializer, seed=options.seed)
    noise = np.random.default_rng(options.seed).standard_normal((options.examples, 32, 32, 3))
    signal = kv.measure_signal(model, noise.astype("float32"), verbose=0)
    print(signal)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "which_layer.png"
    signal.plot(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
