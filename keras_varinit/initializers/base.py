"""The base of all initializers: seed, context, random streams, config and registration."""

import concurrent.futures
import copy
import hashlib
import math
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit import keras_private
from keras_varinit.arguments import Arguments
from keras_varinit.context import LayerContext
from keras_varinit.initializers.memory import remember
from keras_varinit.tensors import digest
from keras_varinit.typing import AnyArray, ArrayLike, Config

Float32Array = npt.NDArray[np.float32]

Family = Literal["normal", "truncated_normal", "uniform", "orthogonal", "other"]

T = TypeVar("T", bound=type)

PACKAGE = "keras_varinit"

# Standard deviation of N(0, 1) truncated to [-2, 2], as in Keras's truncated normal.
TRUNCATED_STDDEV = 0.87962566103423978

_BLOCK = 2**16

_KINDS = {"kernel": "kernels", "bias": "biases", "scale": "scales of normalizations"}

_THREADS = min(8, os.cpu_count() or 1)


class ContextualInitializer(keras.initializers.Initializer):
    """Base of the initializers that take the context of their kernel into account.

    A subclass implements `stddev`, `neutral` and `_sample`, and lists its constructor's arguments
    in `get_config`. `__call__` is a pure function of shape, dtype and configuration: it draws with
    NumPy in float32 and casts last, so a seed gives the same kernel on TensorFlow, JAX and PyTorch,
    on CPU and GPU.

    Args:
        seed: Integer or None. None draws a new seed from Python's `random`, which
            `keras.utils.set_random_seed` controls, as Keras's own initializers do.
        context: A `LayerContext`, its dictionary, or None for the neutral case.

    Attributes:
        kinds: What it draws: any of `"kernel"`, `"bias"` and `"scale"` (γ of a normalization).
    """

    kinds: ClassVar[tuple[str, ...]] = ("kernel",)

    def __init__(
        self,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        self.seed = self._arguments.seed(seed)
        self._entropy = random.randint(1, 10**9) if self.seed is None else self.seed
        self._context = self._checked_context(context)
        self._digests: dict[tuple[int, ...], bytes] = {}

    @property
    def context(self) -> LayerContext | None:
        """The `LayerContext` that this initializer draws for, or None."""
        return self._context

    @classmethod
    def purpose(cls) -> str:
        """What it draws, as a phrase for messages."""
        return "draws " + " and ".join(_KINDS[kind] for kind in cls.kinds)

    @property
    def entropy(self) -> int:
        """The seed that it draws from: `seed`, or the one that was drawn in place of None."""
        return self._entropy

    @property
    def family(self) -> Family:
        """Distribution of an entry; a wrapper cannot draw "orthogonal" and "other" itself."""
        return "other"

    @property
    def is_independent(self) -> bool:
        """Whether its kernel is independent of all others, as the signal engine assumes."""
        return True

    @property
    def shares_group(self) -> bool:
        """Whether it draws kernels of one `group` together, so that they must have one seed."""
        return False

    @property
    def sets_forget_gate(self) -> bool:
        """Whether it draws the forget gate's bias, which Keras sets to 1 (`unit_forget_bias`)."""
        return False

    @property
    def needs_signal(self) -> bool:
        """Whether the context must contain the signal engine's gain."""
        return False

    @property
    def refused_as_base(self) -> str | None:
        """Why no wrapper may scale the draws of this initializer; None if one may."""
        return None

    def mean(self, shape: Sequence[int]) -> float:
        """Returns the mean of an entry of a kernel of that shape; the engine assumes 0."""
        return 0.0

    def reads_centre_only(self, shape: Sequence[int]) -> bool:
        """Whether a kernel of that shape is zero at every tap of its window but the central one."""
        return False

    def share(self, context: LayerContext) -> float | None:
        """E F²/E s² that a residual branch F is to add to its stream s.

        None where the initializer asks for none, or the weight ends no branch.
        """
        return None

    def with_context(self, context: LayerContext | None) -> Self:
        """Returns a copy that draws for `context`, from the same seed."""
        twin = copy.copy(self)
        twin._context = context  # noqa: SLF001 - an object of this class, not yet handed out
        twin._digests = {}  # noqa: SLF001
        return twin

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns the target standard deviation √E[var] of an entry of a kernel of that shape.

        None if unknown, for a base initializer that belongs neither to this library nor to Keras.
        """
        raise NotImplementedError

    def neutral(self) -> keras.initializers.Initializer:
        """Returns the initializer of Keras that is equivalent to this one without a context."""
        raise NotImplementedError

    def in_keras(self) -> keras.initializers.Initializer | None:
        """Returns Keras's initializer for the present context.

        None if it follows from `family` and `stddev`.
        """
        return None

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> ArrayLike:
        """Returns a kernel of that shape: a backend tensor of `dtype` (default: Keras's floatx)."""
        shape = self._checked_shape(shape)
        dtype = keras.backend.standardize_dtype(dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"{self._name}: `dtype` must be a floating-point type. Received: dtype={dtype!r}."
            )
        values = self._sample(shape)
        if isinstance(values, np.ndarray) and self._context is None:
            self._digests[shape] = digest(values)
            # Zeros and ones may be anyone's.
            by_value = not np.all((values == 0) | (values == 1))
            remember(self, shape, self._digests[shape], by_value=by_value)
        return keras.ops.cast(keras.ops.convert_to_tensor(values), dtype)

    def is_own_draw(self, values: AnyArray, dtype: str) -> bool:
        """Whether values equal, bit for bit, what this initializer draws for their shape.

        Draws without a context are compared by their remembered digests: `inject` needs them for
        every kernel that a layer was built with, and redrawing takes several times longer.
        """
        if dtype == "float32" and values.shape in self._digests:
            return digest(values) == self._digests[values.shape]
        again = keras.ops.convert_to_numpy(self(values.shape, dtype=dtype))
        return bool(np.array_equal(again, values))

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        context = None if self._context is None else self._context.to_dict()
        return {"seed": self.seed, "context": context}

    def __repr__(self) -> str:
        arguments = {k: v for k, v in self.get_config().items() if k != "context"}
        shown = ", ".join(
            f"{k}={v['class_name'] if isinstance(v, dict) else v!r}" for k, v in arguments.items()
        )
        place = "" if self._context is None else f", context=<{self._context.path}>"
        return f"{self._name}({shown}{place})"

    def _sample(self, shape: tuple[int, ...]) -> ArrayLike:
        """Returns the kernel: a float32 array, or a float32 tensor of the backend."""
        raise NotImplementedError

    def _context_for(self, shape: Sequence[int]) -> LayerContext | None:
        """The context if it is for a weight of that shape; otherwise warns and returns None."""
        context = self._context
        if context is None or self._is_for(context, tuple(shape)):
            return context
        if context.kind in self.kinds:
            wanted = f"a kernel of shape {context.kernel_shape}"
            fix = "Call keras_varinit.inject(model) to give the new layer its own context."
        else:
            wanted = f"a weight of role {context.role!r}"
            fix = f"{self._name} {self.purpose()}."
        warnings.warn(
            f"{self._name}: the context of {context.path!r} is for {wanted}, but shape "
            f"{tuple(shape)} is drawn: the neutral case is used. {fix}",
            stacklevel=4,
        )
        return None

    def _is_for(self, context: LayerContext, shape: tuple[int, ...]) -> bool:
        """Whether a context fits; that of a bias or γ has the shape of its kernel only."""
        if context.kind not in self.kinds:
            return False
        return context.kind != "kernel" or shape == context.kernel_shape

    def _stream_key(self) -> int:
        """Key of the random stream of (seed, kernel): the same in every process."""
        return stream_key(self._entropy, "" if self._context is None else self._context.stream)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _arguments(self) -> Arguments:
        return Arguments(self._name)

    def _checked_context(self, context: object) -> LayerContext | None:
        if context is None or isinstance(context, LayerContext):
            return context
        if isinstance(context, Mapping):
            return LayerContext.from_dict(context)
        raise self._arguments.error(
            "context", context, "a LayerContext, its dictionary or None", TypeError
        )

    def _checked_shape(self, shape: Any) -> tuple[int, ...]:
        try:
            checked = tuple(int(n) for n in shape)
        except (TypeError, ValueError):
            raise self._arguments.error(
                "shape", shape, "a sequence of integers", TypeError
            ) from None
        if not checked or any(n < 0 for n in checked):
            raise self._arguments.error("shape", shape, "a non-empty sequence of sizes >= 0")
        return checked


registered_names: dict[str, type] = {}


def register(*names: str) -> Callable[[T], T]:
    """Class decorator that registers a class with Keras by class name and string ids."""

    def decorate(cls: T) -> T:
        keras.saving.register_keras_serializable(package=PACKAGE)(cls)
        for name in (cls.__name__, f"{PACKAGE}>{cls.__name__}", *names):
            keras_private.name_initializer(name, cls)
            registered_names[name] = cls
        return cls

    return decorate


def draw(key: int, shape: tuple[int, ...], distribution: str, stddev: float = 1.0) -> Float32Array:
    """Draws zero-mean float32 entries of a "normal", "truncated_normal" or "uniform" distribution.

    Each block of 2^16 entries has its own stream, so that blocks are drawn in parallel and the
    result does not depend on the number of threads.
    """
    values = np.empty(shape, np.float32)
    flat = values.reshape(-1)
    blocks = [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]

    def fill(numbered: tuple[int, Float32Array]) -> None:
        number, block = numbered
        _FILL[distribution](random_stream(key, number + 1), block, stddev)

    if len(blocks) == 1:
        fill((0, blocks[0]))
    elif blocks:
        with concurrent.futures.ThreadPoolExecutor(min(len(blocks), _THREADS)) as pool:
            list(pool.map(fill, enumerate(blocks)))
    return values


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


def neutral_fans(shape: Sequence[int]) -> tuple[float, float]:
    """Fan-in and fan-out from a kernel's shape alone, in Keras's layouts."""
    if len(shape) == 1:
        return shape[0], shape[0]
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]
