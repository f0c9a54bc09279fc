"""Remembers which initializers drew for which layer, as some layers do not store theirs.

`self.add_weight(..., initializer="asv_backward")` draws, and Keras then drops the initializer. Each
draw is remembered with the layer being built, for that layer's lifetime. When Keras builds a model
symbolically, it creates variables first and fills them later; no layer is known then, and the draw
is remembered by the digest of its values.
"""

import collections
import threading
import weakref

from keras_varinit.keras_private import layer_being_built
from keras_varinit.typing import Initializer, Layer

Shape = tuple[int, ...]

_MOST = 10_000

_by_layer: weakref.WeakKeyDictionary[Layer, list[tuple[Shape, Initializer]]] = (
    weakref.WeakKeyDictionary()
)

_by_digest: collections.OrderedDict[bytes, Initializer] = collections.OrderedDict()

_lock = threading.Lock()


def remember(
    initializer: Initializer, shape: Shape, digest: bytes, *, by_value: bool = True
) -> None:
    """Remembers a draw; without a layer only `by_value`, if its values cannot be another's."""
    layer = layer_being_built()
    with _lock:
        if layer is not None:
            drawn = _by_layer.setdefault(layer, [])
            if not any(s == shape and i is initializer for s, i in drawn):
                drawn.append((shape, initializer))
            return
        if not by_value:
            return
        _by_digest[digest] = initializer
        while len(_by_digest) > _MOST:
            _by_digest.popitem(last=False)


def remembered(layer: Layer) -> list[tuple[Shape, Initializer]]:
    """Shape and initializer of each draw for a layer, in order."""
    with _lock:
        return list(_by_layer.get(layer, ()))


def drawer_of(digest: bytes) -> Initializer | None:
    """The initializer that drew values with that digest when no layer was known, or None."""
    with _lock:
        return _by_digest.get(digest)


def has_drawn() -> bool:
    """Whether any draw is remembered."""
    with _lock:
        return bool(_by_layer or _by_digest)


def has_drawn_for_no_layer() -> bool:
    """Whether any draw is remembered for which no layer was known."""
    with _lock:
        return bool(_by_digest)
