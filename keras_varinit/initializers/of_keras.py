"""What the initializers of Keras and of other libraries draw: whole, or shard by shard.

On a mesh, such an initializer is compiled with the layout of its result (`jax.jit` with
`out_shardings`), so that every device computes its own part. JAX's random numbers do not depend on
the layout, so the entries are those of one device, bit for bit. Weights of at most one block are
drawn on each host instead, which takes less time than compiling. Keras's `Orthogonal` is the
exception to the memory: its decomposition needs the whole matrix, on every device. `initialize`
draws the laws of Keras's independent entries otherwise (`same_law.py`).
"""

import copy
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.initializers.streams import BLOCK
from keras_varinit.sharding import Layout, check_same_on_all_hosts, is_replicated
from keras_varinit.typing import ArrayLike


def drawn(
    initializer: Any,
    shape: tuple[int, ...],
    layout: Layout | None = None,
    dtype: str = "float32",
) -> ArrayLike:
    """What an initializer draws, on a layout if there is one."""
    if layout is None:
        return initializer(shape, dtype=dtype)
    import jax

    seed = getattr(initializer, "seed", None)
    owner = type(initializer).__name__
    check_same_on_all_hosts(owner, layout, seed if isinstance(seed, int) else 0)
    if is_replicated(layout) or math.prod(shape) <= BLOCK:
        whole = np.asarray(initializer(shape, dtype=dtype))
        return jax.make_array_from_callback(shape, layout, lambda index: whole[index])
    if type(seed) is int and keras_private.is_keras_class(type(initializer)):
        config = json.dumps({**initializer.get_config(), "seed": 0}, sort_keys=True, default=str)
        compiled = _compiled_for_any_seed(_Kept(initializer, config), shape, dtype, layout)
        return compiled(np.asarray([seed, 0], np.uint32))
    return jax.jit(lambda: initializer(shape, dtype=dtype), out_shardings=layout)()


def cast(value: ArrayLike, dtype: str) -> ArrayLike:
    """A tensor of another type."""
    return keras.ops.cast(keras.ops.convert_to_tensor(value), dtype)


class _Seed(keras.random.SeedGenerator):
    """A seed that is an argument of the compiled function, so that layers share one."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def next(self, ordered: bool = True) -> Any:
        """The seed, at every call."""
        return self.value


class _Kept:
    """An initializer that is the same as another of its class with an equal configuration."""

    def __init__(self, initializer: Any, config: str) -> None:
        self.initializer = initializer
        self.key = type(initializer), config

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and self.key == other.key


@functools.lru_cache(maxsize=256)
def _compiled_for_any_seed(
    kept: _Kept, shape: tuple[int, ...], dtype: str, layout: Layout
) -> Callable[[Any], Any]:
    import jax

    def draw(seed: Any) -> Any:
        initializer: Any = copy.copy(kept.initializer)
        initializer.seed = _Seed(seed)
        return initializer(shape, dtype=dtype)

    return jax.jit(draw, out_shardings=layout)  # type: ignore[no-any-return]
