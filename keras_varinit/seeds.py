"""Python's own random numbers, left as they were."""

import contextlib
import random
from collections.abc import Iterator


@contextlib.contextmanager
def random_kept(key: int | None = None) -> Iterator[None]:
    """Leaves Python's `random` as it was, whatever draws from it inside.

    Initializers and layers without a seed take one from `random` when they are constructed. Inside,
    `random` is seeded with `key`, or None continues from a hash of its state: what is drawn inside
    is not what the next caller outside draws.
    """
    state = random.getstate()
    random.seed(str(state) if key is None else key)
    try:
        yield
    finally:
        random.setstate(state)
