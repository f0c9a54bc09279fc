"""Random streams: the entries of a kernel come in blocks, each from a stream of its own."""

import hashlib
import math

import numpy as np
import numpy.typing as npt

from keras_varinit.tensors import CHUNK

Float32Array = npt.NDArray[np.float32]

PACKAGE = "keras_varinit"

# Entries of a block. Another number would be other weights.
BLOCK = CHUNK

# Standard deviation of N(0, 1) truncated to [-2, 2], as in Keras's truncated normal.
TRUNCATED_STDDEV = 0.87962566103423978


def stream_key(seed: int, stream: str) -> int:
    """Key of a stream: a hash, so that streams of similar names are unrelated."""
    hashed = hashlib.sha256(f"{PACKAGE}|{seed}|{stream}".encode()).digest()
    return int.from_bytes(hashed[:16], "big")


def stream_seed(seed: int, stream: str) -> int:
    """A seed for Keras's initializers, derived from the same hash."""
    return stream_key(seed, stream) % 2**31


def random_stream(key: int, number: int) -> np.random.Generator:
    """Generator `number` of a key: 0 is for draws per filter, the others for blocks of entries."""
    sequence = np.random.SeedSequence(key, spawn_key=(number,))
    return np.random.Generator(np.random.PCG64(sequence))


def fill_block(
    key: int, number: int, block: Float32Array, distribution: str, stddev: float
) -> None:
    """Draws block `number` of a key, or its first entries: zero mean, the standard deviation given.

    The distribution is "normal", "truncated_normal" or "uniform".
    """
    _FILL[distribution](random_stream(key, number + 1), block, stddev)


def _fill_normal(generator: np.random.Generator, block: Float32Array, stddev: float) -> None:
    generator.standard_normal(dtype=np.float32, out=block)
    block *= np.float32(stddev)


def _fill_truncated(generator: np.random.Generator, block: Float32Array, stddev: float) -> None:
    """Redraws entries beyond two standard deviations until there are none, then rescales."""
    generator.standard_normal(dtype=np.float32, out=block)
    outside = np.flatnonzero(np.abs(block) > 2)
    while outside.size:
        block[outside] = generator.standard_normal(outside.size, dtype=np.float32)
        outside = outside[np.abs(block[outside]) > 2]
    block *= np.float32(stddev / TRUNCATED_STDDEV)


def _fill_uniform(generator: np.random.Generator, block: Float32Array, stddev: float) -> None:
    generator.random(dtype=np.float32, out=block)
    block -= np.float32(0.5)
    block *= np.float32(stddev * math.sqrt(12))


_FILL = {"normal": _fill_normal, "truncated_normal": _fill_truncated, "uniform": _fill_uniform}
