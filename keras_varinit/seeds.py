"""Drawing without affecting Python's `random`."""

import contextlib
import random
from collections.abc import Iterator


@contextlib.contextmanager
def random_kept(key: int | None = None) -> Iterator[None]:
    """Seeds Python's `random` within the scope, and restores its state afterwards.

    Initializers and layers without a seed take one from `random` when they are constructed. The
    seed is `key`, or if None a hash of the present state, so that draws inside differ from the next
    ones outside.
    """
    state = random.getstate()
    random.seed(str(state) if key is None else key)
    try:
        yield
    finally:
        random.setstate(state)
