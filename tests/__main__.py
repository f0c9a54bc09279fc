"""Runs the suite once per Keras backend: `python -m tests [backend ...] [-- pytest options]`.

Tests of what does not depend on the backend run with the first one only: the files named here, and
what is marked `once`.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
# What reads models or draws with NumPy does the same on every backend.
ONCE = {
    *("asv", "asv_f34", "attention_moments", "attention_signals", "bad_arguments", "catalogue"),
    *("contexts", "enhanced", "examples_dense", "fails_closed", "fans_einsum", "hub"),
    *("joint_moments", "packages", "recurrent_moments", "recurrent_signals", "twins"),
    *("examples_images", "fans_measured", "lint", "moments", "notebooks", "pair_moments"),
    *("plotting", "readme", "rooms", "signal_engine", "signal_maps", "signal_preserving"),
}
# Measured draws, for which JAX compiles again and again: PyTorch stands for it.
NOT_TWICE = {"jax": {"fans_gradient", "resampling_maps"}}
# Two workers with two threads each are slower than two with one.
THREADS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}


def main(arguments: list[str]) -> int:
    """Returns 0 when every backend's run passed."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    backends, options = arguments[:split] or list(BACKENDS), arguments[split + 1 :]
    unknown = [b for b in backends if b not in BACKENDS]
    if unknown:
        print(f"unknown backend {unknown[0]!r}; choose from {', '.join(BACKENDS)}")
        return 2
    failed = []
    for backend in backends:
        print(f"== {backend}", flush=True)
        if importlib.util.find_spec(backend) is None:
            print(f'{backend} is not installed: python -m pip install -e ".[dev]"')
            failed.append(backend)
            continue
        command = [sys.executable, "-m", "pytest", "-n", "auto", "--dist", "loadfile"]
        if backend != backends[0]:
            left_out = ONCE | NOT_TWICE.get(backend, set())
            command += ["--hypothesis-profile=brief", "-m", "not zoo and not hub and not once"]
            command += [f"--ignore=tests/test_{name}.py" for name in sorted(left_out)]
        command += options
        environment = {**THREADS, **os.environ, "KERAS_BACKEND": backend}
        root = Path(__file__).resolve().parent.parent
        if subprocess.run(command, cwd=root, env=environment, check=False).returncode != 0:
            failed.append(backend)
    print("failed on: " + ", ".join(failed) if failed else f"passed on: {', '.join(backends)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
