"""Work that several threads share, and work for which one is enough.

NumPy and hashlib release the interpreter's lock in what is shared.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import threadpoolctl

THREADS = min(8, os.cpu_count() or 1)

# For each context of `one_thread` that has not ended, what the first of them restores.
_inside: list[Any] = []
_lock = threading.Lock()

_pools: dict[int, concurrent.futures.ThreadPoolExecutor] = {}


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Calls `work` with each of the numbers 0 … count-1, in as many threads as there are cores.

    After an error no further number is begun, and the first error is raised.
    """
    if count == 0:
        return
    workers = min(count, THREADS)
    if workers == 1:
        for number in range(count):
            work(number)
        return
    numbers = itertools.count()
    failed: list[bool] = []

    def run() -> None:
        try:
            while not failed and (number := next(numbers)) < count:
                work(number)
        except BaseException:
            failed.append(True)
            raise

    futures = [_pool().submit(run) for _ in range(workers)]
    try:
        for future in futures:
            future.result()
    finally:
        failed.append(True)
        concurrent.futures.wait(futures)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps NumPy's linear algebra to the calling thread, for as long as the context lasts.

    For matrices of a hundred rows, waking a thread on every core and waiting for the last takes
    longer than the product; where other programs keep the cores busy, many times as long. Some
    builds of BLAS count threads for each calling thread, others for the process; so every context
    that ends restores what was there before the first of those that overlap.
    """
    with _lock:
        limit = _blas().limit(limits=1, user_api="blas")
        first = _inside[0] if _inside else limit
        _inside.append(first)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            first.restore_original_limits()


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    """One pool for each process, as threads do not survive a fork."""
    pool = _pools.get(os.getpid())
    if pool is None:
        pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="keras_varinit")
        _pools[os.getpid()] = pool
    return pool
