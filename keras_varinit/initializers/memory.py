"""Which initializers drew for which layer: some layers keep theirs nowhere.

`self.add_weight(..., initializer="asv_backward")` draws, and Keras forgets the initializer. Each
draw is remembered with the layer that is being built, as long as that layer lives. Where variables
are made first and filled later, as Keras does when it builds a model symbolically, no layer is
known then, and the numbers drawn tell.
"""

import collections
import threading
import weakref
from typing import Any

from keras_varinit.keras_private import layer_being_built

Shape = tuple[int, ...]

_MOST = 10_000

_by_layer: weakref.WeakKeyDictionary[Any, list[tuple[Shape, Any]]] = weakref.WeakKeyDictionary()

_by_digest: collections.OrderedDict[bytes, Any] = collections.OrderedDict()

_lock = threading.Lock()


def remember(initializer: Any, shape: Shape, digest: bytes) -> None:
    """Takes note of a draw for a layer that is being built."""
    layer = layer_being_built()
    with _lock:
        if layer is not None:
            drawn = _by_layer.setdefault(layer, [])
            if not any(held is initializer and like == shape for like, held in drawn):
                drawn.append((shape, initializer))
            return
        _by_digest[digest] = initializer
        while len(_by_digest) > _MOST:
            _by_digest.popitem(last=False)


def remembered(layer: Any) -> list[tuple[Shape, Any]]:
    """The shape and the initializer of each draw for a layer, in order."""
    with _lock:
        return list(_by_layer.get(layer, ()))


def drawer_of(digest: bytes) -> Any | None:
    """The initializer that drew numbers of that digest when no layer was known, or None."""
    with _lock:
        return _by_digest.get(digest)
