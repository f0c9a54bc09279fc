"""What a process of the panel does first; it imports nothing that starts a backend."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal

from common.quiet import quiet_import

_ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def in_new_process(processes: int) -> None:
    """Leaves Ctrl-C to the process that started this one, and shares its machine with the others.

    Args:
        processes: How many there are; a single one takes all cores.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if processes > 1:
        # JAX would give the first of them three quarters of a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_CORE}".strip()
    import_keras()


def import_keras() -> None:
    """Imports Keras without TensorFlow's start-up messages."""
    with quiet_import(), contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("keras")
        importlib.import_module("tensorflow")
