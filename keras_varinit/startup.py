"""Keeps the log of a backend's C++ part off the screen while the command line runs.

It is imported before Keras is: TensorFlow writes to the file descriptor of standard error when it
is imported, before any of its settings is read.
"""

import atexit
import os
import pathlib
import re
import sys
import tempfile

_LOG = re.compile(
    rb"[IW]\d{4} |\d{4}-\d\d-\d\d \S+ [IW] |WARNING: All log messages before absl|To enable "
)

COMMAND = "keras-varinit"


def _runs_command() -> bool:
    """Whether this process is `python -m keras_varinit` or the console script."""
    name = pathlib.PurePath(sys.argv[0] if sys.argv else "")
    if name.name == "-m":  # as long as the package of the module to run is imported
        return "keras_varinit" in sys.orig_argv
    return name.stem == COMMAND


def _divert_log() -> None:
    """Sends what is written to file descriptor 2 to a file; Python's messages stay on the screen.

    At exit, lines of the file that are not log messages are shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    screen = os.dup(2)
    sys.stderr = os.fdopen(screen, "w", buffering=1, errors="backslashreplace", closefd=False)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
    os.dup2(log.fileno(), 2)

    def show() -> None:
        sys.stderr.flush()
        log.seek(0)
        os.write(screen, b"".join(line for line in log if not _LOG.match(line)))

    atexit.register(show)


if _runs_command():
    _divert_log()
