"""Plans a language model of a billion weights without any in memory, and draws one in shards.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 KERAS_BACKEND=jax \
        python examples/large_model.py [--blocks 18 --width 2048] [--drawn-width 256]

The first model has shapes only: `initialize` says what it would draw for each weight, and the
signal engine what the signal does. The second, of the same form and a width that fits, is planned
in the same way, laid out on a mesh of all devices, and drawn shard by shard.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import keras_varinit as kv

L = keras.layers


def language_model(blocks: int, width: int, vocabulary: int, length: int = 128) -> keras.Model:
    """A pre-norm decoder.

    Args:
        blocks: Number of blocks, each of causal attention and a GELU network.
        width: Channels; heads have up to 128 of them.
        vocabulary: Number of tokens.
        length: Number of positions.

    Returns:
        A Functional model from tokens to logits.
    """
    heads = max(1, width // 128)
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = L.Embedding(vocabulary, width, name="embedding")(tokens)
    for number in range(blocks):
        y = L.LayerNormalization(name=f"norm_{number}_attention")(x)
        attention = L.MultiHeadAttention(heads, width // heads, name=f"attention_{number}")
        x = L.Add()([x, attention(y, y, use_causal_mask=True)])
        y = L.LayerNormalization(name=f"norm_{number}_ffn")(x)
        y = L.Dense(4 * width, "gelu", name=f"ffn_in_{number}")(y)
        x = L.Add()([x, L.Dense(width, name=f"ffn_out_{number}")(y)])
    x = L.LayerNormalization(name="norm_head")(x)
    return keras.Model(tokens, L.Dense(vocabulary, use_bias=False, name="logits")(x))


def distribution() -> keras.distribution.ModelParallel:
    """Every large weight in as many shards as there are devices."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*embedding/embeddings"] = (None, "model")
    layouts[".*(query|key|value)/kernel"] = ("model", None, None)
    layouts[".*attention_output/kernel"] = (None, None, "model")
    layouts[".*ffn_in.*/kernel"] = (None, "model")
    layouts[".*ffn_out.*/kernel"] = ("model", None)
    layouts[".*logits/kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def main(argv: Sequence[str] | None = None) -> int:
    """Plans one model and draws another.

    Args:
        argv: The arguments; `None` takes those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    _planned(1, 64, 100)  # what the backend takes once, however small the model
    before = _resident()
    large, report = _planned(options.blocks, options.width, options.vocabulary)
    predicted = kv.analyze(large).predicted
    took = _resident() - before
    count = large.count_params()
    print(f"planned: {count / 1e9:.2f} billion weights, {4 * count / 2**30:.1f} GiB in float32")
    for name, number in Counter(row.initializer for row in report.planned).most_common():
        print(f"  {number:4d} weights by {name}")
    logits = predicted["logits/kernel"].forward
    print(f"  second moment at the logits: {'unknown' if logits is None else f'{logits:.2g}'}")
    print(f"  memory that planning took: {took / 2**20:.0f} MiB")

    keras.distribution.set_distribution(distribution())
    model, _ = _planned(options.blocks, options.drawn_width, options.drawn_vocabulary)
    kv.create_weights(model)
    kernel = model.get_layer("ffn_in_0").kernel
    shards = kernel.value.addressable_shards
    print(f"drawn: {model.count_params() / 1e6:.1f} million weights on {len(shards)} devices")
    print(f"  {kernel.path} {tuple(kernel.shape)}: shards of {tuple(shards[0].data.shape)}")
    print(f"  lint: {len(kv.lint(model))} findings")
    return 0


def _planned(blocks: int, width: int, vocabulary: int) -> tuple[keras.Model, kv.Report]:
    """A model without weights, and what it will be drawn with."""
    with kv.without_weights():
        model = language_model(blocks, width, vocabulary)
    return model, kv.initialize(model, seed=0)


def _resident() -> int:
    """Resident memory of this process, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default, what in (
        ("--blocks", 18, "blocks of both models"),
        ("--width", 2048, "channels of the planned model"),
        ("--vocabulary", 32_000, "tokens of the planned model"),
        ("--drawn-width", 256, "channels of the drawn model"),
        ("--drawn-vocabulary", 1024, "tokens of the drawn model"),
    ):
        text = f"{what} (default: %(default)s)"
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
