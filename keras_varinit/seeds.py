"""Seeds: what counts as one, and Python's own random numbers."""

import contextlib
import numbers
import random
from collections.abc import Iterator
from typing import Any


def checked_seed(owner: str, seed: Any) -> int | None:
    """Returns a seed as a Python integer or None.

    Raises:
        TypeError: it is neither. The message begins with `owner`.
    """
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            f"{owner}: `seed` must be an integer or None (calls are pure, so a SeedGenerator "
            f"cannot be used). Received: seed={seed!r}."
        )
    return int(seed)


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
