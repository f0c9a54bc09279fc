"""Runs a piece of a test in a new Python process with the same backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(source, *arguments, **environment):
    """Starts `source`; it reads `sys.argv[1:]` and prints one line of JSON as its last line."""
    settings = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process, timeout=300):
    """Waits for a process of `start` and returns what it printed last."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, f"{output}\n{errors[-6000:]}"
    return json.loads(output.splitlines()[-1])


def run(source, *arguments, **environment):
    return result(start(source, *arguments, **environment))
