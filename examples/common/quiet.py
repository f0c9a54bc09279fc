"""Keeps TensorFlow's start-up messages off the screen."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator

from common.errors import UserError, require

# TensorFlow reads this when it is first imported, which Keras does under every backend.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_CHATTER = re.compile(rb"[IW]\d{4} |WARNING: All log messages before absl|To enable the following")


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Drops the log lines that TensorFlow writes while it is imported; other lines stay.

    `TF_CPP_MIN_LOG_LEVEL` does not reach what is logged before TensorFlow has set up logging,
    and Python's `sys.stderr` is not what its C++ part writes to.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            captured.seek(0)
            for line in captured:
                if not _CHATTER.match(line):
                    sys.stderr.write(line.decode(errors="replace"))


def import_keras() -> types.ModuleType:
    """Imports Keras without TensorFlow's start-up messages.

    Raises:
        UserError: It is missing, or does not start.
    """
    try:
        with quiet_import():
            keras = require("keras", "keras", "for this example")
            # Under other backends too, Keras imports TensorFlow where it is there, but later.
            with contextlib.suppress(ImportError):
                importlib.import_module("tensorflow")
    except ValueError as error:
        raise UserError(f"Keras does not start: {error}") from error
    return keras
