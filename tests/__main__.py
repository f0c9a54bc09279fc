"""Runs the suite once per Keras backend."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
# Two workers with two threads each are slower than two with one.
THREADS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}


def parsed(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Backends, and options for pytest."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        usage="%(prog)s [backend ...] [-- pytest options]",
        description=f"{__doc__} With the first one all tests run, with the others all but those "
        "marked `once`, which are the same on every backend.",
        epilog="Example: python -m tests jax torch -- -k inject -m 'not slow'",
    )
    parser.add_argument(
        "backends",
        nargs="*",
        metavar="backend",
        help=f"{', '.join(BACKENDS)}; all of them if none is named",
    )
    backends = parser.parse_args(arguments[:split]).backends or list(BACKENDS)
    for backend in backends:
        if backend not in BACKENDS:
            parser.error(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    return backends, arguments[split + 1 :]


def main(arguments: list[str]) -> int:
    """Returns 0 when every backend's run passed."""
    backends, options = parsed(arguments)
    failed = []
    for backend in backends:
        print(f"== {backend}", flush=True)
        if importlib.util.find_spec(backend) is None:
            print(f'{backend} is not installed: python -m pip install -e ".[dev]"')
            failed.append(backend)
            continue
        command = [sys.executable, "-m", "pytest", "-n", "auto", "--dist", "loadfile"]
        if backend != backends[0]:
            command += ["--hypothesis-profile=brief", "--other-backend"]
        command += options
        environment = {**THREADS, **os.environ, "KERAS_BACKEND": backend}
        root = Path(__file__).resolve().parent.parent
        if subprocess.run(command, cwd=root, env=environment, check=False).returncode != 0:
            failed.append(backend)
    print("failed on: " + ", ".join(failed) if failed else f"passed on: {', '.join(backends)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
