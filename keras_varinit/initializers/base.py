"""The base of all initializers: seed, context, random streams, config and registration."""

import copy
import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import keras
import numpy as np

from keras_varinit import keras_private, sharding
from keras_varinit.arguments import Arguments
from keras_varinit.context import LayerContext
from keras_varinit.initializers import draws
from keras_varinit.initializers.draws import Draw, Drawn, Entries, Foreign
from keras_varinit.initializers.memory import remember
from keras_varinit.initializers.streams import PACKAGE, stream_key
from keras_varinit.sharding import Index, Layout
from keras_varinit.tensors import CHUNK, digest, key_of
from keras_varinit.typing import AnyArray, ArrayLike, Config

Family = Literal["normal", "truncated_normal", "uniform", "orthogonal", "other"]

T = TypeVar("T", bound=type)

_KINDS = {"kernel": "kernels", "bias": "biases", "scale": "scales of normalizations"}


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
        self._digests: dict[tuple[tuple[int, ...], str], dict[Index, bytes]] = {}

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

    def __call__(
        self, shape: Sequence[int], dtype: str | None = None, layout: Layout | None = None
    ) -> ArrayLike:
        """Returns a kernel of that shape: a backend tensor of `dtype` (default: Keras's floatx).

        With a `layout`, a `keras.distribution.TensorLayout` or a sharding of JAX, each shard is
        drawn by itself, and only those that devices of this host hold; the kernel's entries are the
        same on one device and on any mesh. Draws that need a whole matrix (`"orthogonal"`,
        `Mimetic`) are computed whole on every host, which then keeps its shards.
        """
        return self.drawn(shape, dtype, layout).value

    def drawn(
        self,
        shape: Sequence[int],
        dtype: str | None = None,
        layout: Layout | None = None,
        *,
        finite: bool = False,
    ) -> Drawn:
        """Draws as a call does, and checks that the entries are `finite` if asked to."""
        shape = self._checked_shape(shape)
        dtype = keras.backend.standardize_dtype(dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"{self._name}: `dtype` must be a floating-point type. Received: dtype={dtype!r}."
            )
        if keras_private.is_shape_inference():
            # Keras asks for shapes alone, or stores what it will fill later.
            if self._context is None:
                remember(self, shape, b"", by_value=False)
            return Drawn(keras.ops.zeros(shape, dtype), None, {}, None)
        layout = sharding.checked_layout(self._name, layout)
        sharding.check_same_on_all_hosts(self._name, layout, self._stream_key())
        neutral = self._context is None
        drawn = draws.make(self.draw(shape), dtype, layout, digests=neutral, finite=finite)
        if neutral and drawn.parts is not None:
            self._digests.setdefault((shape, dtype), {}).update(drawn.digests)
            # Zeros and ones may be anyone's.
            by_value = _has_other_than_zeros_and_ones(drawn.parts)
            key = key_of(tuple(sorted(drawn.digests.items())))
            remember(self, shape, key, by_value=by_value)
        return drawn

    def draw(self, shape: tuple[int, ...]) -> Draw:
        """What it draws for that shape, not drawn yet."""
        sample = self._sample(shape)
        if isinstance(sample, Draw):
            return sample
        if isinstance(sample, np.ndarray):
            return Draw(shape, Entries(np.asarray(sample, np.float32)))
        return Draw(shape, Foreign(lambda shape, dtype: sample))

    def is_own_draw(
        self, parts: Mapping[Index, AnyArray], shape: Sequence[int], dtype: str, layout: Layout
    ) -> bool:
        """Whether parts of a kernel equal, bit for bit, what this initializer draws for them.

        Draws without a context are compared by their remembered digests: `inject` needs them for
        every kernel that a layer was built with, and redrawing takes several times longer.
        """
        shape = tuple(int(n) for n in shape)
        digests = self._digests.get((shape, dtype), {})
        if parts.keys() <= digests.keys():
            return all(digest(values) == digests[index] for index, values in parts.items())
        return draws.equals(self.draw(shape), parts, dtype, layout)

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

    def _sample(self, shape: tuple[int, ...]) -> Draw | ArrayLike:
        """Returns the kernel: a `Draw`, a float32 array, or a float32 tensor of the backend."""
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


def _has_other_than_zeros_and_ones(parts: Mapping[Index, AnyArray]) -> bool:
    """Whether some entry is neither 0 nor 1; the first ones usually tell."""
    for values in parts.values():
        for entries in (values.reshape(-1)[:CHUNK], values):
            if not np.all((entries == 0) | (entries == 1)):
                return True
    return False


def neutral_fans(shape: Sequence[int]) -> tuple[float, float]:
    """Fan-in and fan-out from a kernel's shape alone, in Keras's layouts."""
    if len(shape) == 1:
        return shape[0], shape[0]
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]
