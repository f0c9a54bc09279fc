"""What initializers that draw with a base initializer share."""

from collections.abc import Mapping, Sequence

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer, Family
from keras_varinit.initializers.draws import Draw, Foreign, constant, independent
from keras_varinit.initializers.laws import Law, describe, reseeded, resolve_base, seed_of
from keras_varinit.initializers.same_law import has_blocks
from keras_varinit.typing import Config


class Wrapper(ContextualInitializer):
    """Draws with a base initializer, of Keras or of this library.

    Args:
        initializer: The base: a string id, config or initializer object that is zero-mean and takes
            a `seed`.
        seed: Integer or None. None takes the base's own seed if it has one.
        context: A `LayerContext`, its dictionary, or None for the neutral case.
    """

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer,
        seed: int | None,
        context: LayerContext | Mapping[str, object] | None,
    ) -> None:
        if seed is None:
            seed = seed_of(self._name, resolve_base(self._name, initializer, None))
        super().__init__(seed=seed, context=context)
        self.initializer = resolve_base(self._name, initializer, self._entropy)

    @property
    def needs_signal(self) -> bool:
        """Whether the base needs the signal engine's gain."""
        base = self.initializer
        return isinstance(base, ContextualInitializer) and base.needs_signal

    def share(self, context: LayerContext) -> float | None:
        """The share that the base asks for."""
        base = self.initializer
        return base.share(context) if isinstance(base, ContextualInitializer) else None

    def reads_centre_only(self, shape: Sequence[int]) -> bool:
        """Whether the base's kernels are zero at every tap but the central one."""
        base = self.initializer
        if not isinstance(base, ContextualInitializer):
            return False
        return base.with_context(self._context).reads_centre_only(shape)

    def neutral(self) -> keras.initializers.Initializer:
        """Returns the base initializer."""
        base = reseeded(self.initializer, self.seed)
        return base.neutral() if isinstance(base, ContextualInitializer) else base

    def _base_config(self) -> Config:
        """The configuration of the base, with the wrapper's seed."""
        config: Config = keras.initializers.serialize(reseeded(self.initializer, self.seed))
        return config

    def _law(self, shape: Sequence[int]) -> Law:
        return describe(self.initializer, shape, self._context_for(shape))

    def _base_draw(self, shape: tuple[int, ...]) -> Draw:
        """The base's draw; with a context, in the kernel's stream and with its true fans.

        With a context, laws of Keras's are drawn from blocks, so alike on every backend.
        """
        context = self._context_for(shape)
        if context is None:
            return draw_of(self.initializer, shape)
        law = self._law(shape)
        if has_blocks(self.initializer) and law.stddev is not None:
            return independent(self._stream_key(), shape, law.family, law.stddev)
        base = reseeded(self.initializer, self._stream_key() % 2**31)
        if isinstance(base, ContextualInitializer):
            base = base.with_context(context)
        return draw_of(base, shape).scaled(law.correction)


class ScaledWrapper(Wrapper):
    """Multiplies the standard deviation of a base by a factor of the context."""

    @property
    def family(self) -> Family:
        """Distribution of an entry: the base's."""
        return describe(self.initializer, (1, 1), None).family

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns the factor times the base initializer's standard deviation."""
        factor = self._factor_for(shape)
        if factor == 0:
            return 0.0
        stddev = self._law(shape).stddev
        return None if stddev is None else factor * stddev

    def _factor(self, context: LayerContext) -> float:
        """The factor on the standard deviation."""
        raise NotImplementedError

    def _factor_for(self, shape: Sequence[int]) -> float:
        context = self._context_for(shape)
        return 1.0 if context is None else self._factor(context)

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        factor = self._factor_for(shape)
        if factor == 0:
            return constant(shape, 0.0)
        return self._base_draw(shape).scaled(factor)


def draw_of(base: keras.initializers.Initializer, shape: tuple[int, ...]) -> Draw:
    """What a base of any library draws."""
    return (
        base.draw(shape) if isinstance(base, ContextualInitializer) else Draw(shape, Foreign(base))
    )
