"""Who may import whom, and which names are public."""

import ast
from pathlib import Path

import pytest

import keras_varinit as kv

ROOT = Path(kv.__file__).parent

# Each room, and what it may import beyond the standard library.
ROOMS = {
    "context": set(),
    "fans": set(),
    "moments": {"numpy"},
    "entry_laws": {"numpy", "moments"},
    "pair_moments": {"numpy", "moments", "entry_laws"},
    "steepness": {"numpy", "moments"},
    "maxima": {"numpy", "moments", "entry_laws", "pair_moments", "steepness"},
    "joint_moments": {"numpy", "moments", "entry_laws"},
    "recurrent_moments": {"numpy", "moments", "pair_moments"},
    "attention_patterns": {"numpy"},
    "attention_moments": {"numpy", "attention_patterns"},
    "graph": {"keras"},
    "reading": {"keras", "graph"},
    "recording": {"keras", "graph", "reading"},
    "seeds": set(),
    "values": {"keras", "numpy"},
    "analysis": {
        *("keras", "values", "numpy", "graph", "reading", "recording", "fans", "context"),
        *("moments", "entry_laws", "pair_moments", "steepness"),
        *("maxima", "joint_moments", "recurrent_moments"),
        *("attention_moments", "attention_patterns"),
    },
    "initializers": {"keras", "numpy", "graph", "seeds", "context", "moments"},
    "prediction": {"keras", "values", "numpy", "graph", "analysis", "initializers"},
    "reports": {"context"},
    "changes": {"keras", "values", "numpy", "graph"},
    "owners": {"keras", "values", "graph", "changes", "initializers"},
    "injection": {
        *("keras", "values", "numpy", "graph", "context", "analysis", "initializers", "prediction"),
        *("changes", "owners", "reports"),
    },
    "initialization": {
        *("keras", "values", "graph", "context", "analysis", "initializers", "prediction"),
        *("changes", "reports", "seeds", "selection"),
    },
    "selection": {"graph"},
    "builtin": {"keras", "graph", "seeds", "initializers"},
    "lint": {"keras", "values", "numpy", "graph", "analysis", "initializers", "owners"},
    "callbacks": {"keras", "values", "graph", "injection", "reports"},
    "live": {"keras", "graph", "reading", "values", "torch"},
    "diagnostics": {
        *("keras", "numpy", "graph", "live", "moments", "analysis", "prediction", "plotting"),
        *("tensorflow", "jax", "torch"),
    },
    "calibration": {
        *("keras", "numpy", "graph", "values", "live", "analysis", "changes", "diagnostics"),
        "selection",
    },
    "plotting": {"numpy", "matplotlib"},
    "monitor": {"keras", "numpy", "graph", "live", "diagnostics", "plotting", "tensorflow"},
}
STANDARD = {
    "collections", "concurrent", "contextlib", "copy", "csv", "dataclasses", "difflib",
    "functools", "hashlib", "inspect", "itertools", "json", "math", "numbers", "os", "pathlib",
    "random", "re", "threading", "time", "typing", "warnings", "weakref",
}  # fmt: skip


def files():
    return sorted(ROOT.rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "keras_varinit":
                yield from (f"keras_varinit.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upward_only(path):
    room = room_of(path)
    if room == "__init__":
        return
    allowed = ROOMS[room] | {room}
    for name in imports_of(path):
        parts = name.split(".")
        target = parts[1] if parts[0] == "keras_varinit" else parts[0]
        assert target in allowed or target in STANDARD, f"{room} may not import {name}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_of_a_readable_length(path):
    assert len(path.read_text().splitlines()) <= 400


def test_private_keras_is_touched_in_one_file():
    for path in files():
        if path.name != "graph.py":
            assert not any(name.startswith("keras.src") for name in imports_of(path))


def test_public_names_are_what_all_says():
    public = {n for n in vars(kv) if not n.startswith("_")}
    modules = {room for room in ROOMS if room in vars(kv)}
    assert public - (modules - set(kv.__all__)) == set(kv.__all__)
    assert all(getattr(kv, name).__doc__ for name in kv.__all__)
