"""Who may import whom, what stays in one file, and which names are public."""

import ast
import re
from pathlib import Path

import pytest

import keras_varinit as kv

pytestmark = pytest.mark.once

ROOT = Path(kv.__file__).parent
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
BACKENDS = {"tensorflow", "jax", "torch"}

# Each room, from the ground up, and what it may import beyond the standard library: other rooms
# stand above it, so that no import points upward.
ROOMS = {
    "startup": set(),
    "typing": {"numpy"},
    "arguments": set(),
    "context": {"arguments"},
    "seeds": set(),
    "tables": set(),
    "results": {"arguments", "pandas", "tables"},
    "keras_private": {"keras"},
    "threads": {"threadpoolctl"},
    "sharding": {"keras", "numpy", "jax", "torch"},
    "tensors": {"keras", "numpy", "keras_private", "sharding", "threads"},
    "maths": {"numpy"},
    "tracing": {"keras", "numpy", "keras_private"},
    "signals": {"keras", "numpy", "keras_private", "maths", "tensors", "tracing"},
    "families": {"keras", "numpy", "keras_private", "maths", "signals", "tensors", "tracing"},
    "initializers": {
        *("keras", "numpy", "arguments", "context", "keras_private", "maths", "seeds", "sharding"),
        *("tensors", "threads", "jax"),
    },
    "analysis": {
        *("keras", "numpy", "arguments", "context", "families", "initializers", "keras_private"),
        *("maths", "results", "sharding", "signals", "tables", "tensors", "threads", "tracing"),
    },
    "apply": {
        *("keras", "numpy", "analysis", "arguments", "context", "initializers", "keras_private"),
        *("results", "seeds", "sharding", "tables", "tensors", "threads", "tracing"),
    },
    "running": {
        *("keras", "numpy", "arguments", "families", "keras_private", "maths", "signals"),
        *("tensors", "tracing", *BACKENDS),
    },
    "diagnostics": {
        *("keras", "numpy", "matplotlib", "analysis", "apply", "arguments", "keras_private"),
        *("results", "running", "tables", "tensors", "tracing", *BACKENDS),
    },
    "calibration": {
        *("keras", "numpy", "analysis", "apply", "arguments", "diagnostics", "keras_private"),
        *("results", "running", "signals", "tables", "tensors", "tracing"),
    },
    "command_line": {"keras", "analysis", "apply", "results", "startup"},
    "__main__": {"command_line"},
}
STANDARD = {
    "argparse", "atexit", "collections", "concurrent", "contextlib", "copy", "csv",
    "dataclasses", "difflib", "functools", "hashlib", "heapq", "html", "importlib", "inspect",
    "itertools", "json", "logging", "math", "numbers", "os", "pathlib", "random", "re", "sys",
    "tempfile", "textwrap", "threading", "time", "traceback", "typing", "warnings", "weakref",
}  # fmt: skip


def files():
    return sorted(ROOT.rglob("*.py"))


def shown(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, *, at_runtime=False):
    """The full names of what a file imports, wherever in it; on request without types alone."""
    tree = ast.parse(path.read_text())
    if at_runtime:
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module.split(".")[0] == "keras_varinit":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", files(), ids=shown)
def test_imports_point_downward_only(path):
    room = module_of(path).split(".")[0]
    if not room:
        return
    allowed = ROOMS[room] | {room}
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "keras_varinit":
            assert parts[1] in allowed | {"typing"}, f"{room} may not import {name}"
        else:
            assert parts[0] in allowed | STANDARD, f"{room} may not import {name}"


def test_rooms_stand_on_each_other():
    above = list(ROOMS)
    for number, (room, allowed) in enumerate(ROOMS.items()):
        assert not allowed & set(above[number:]), f"{room} imports what stands above it"


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_of(path): path for path in files()}
    uses = {}
    for module, path in modules.items():
        names = (
            name.removeprefix("keras_varinit.")
            for name in imports_of(path, at_runtime=True)
            if name.startswith("keras_varinit.")
        )
        # `from package.module import name` imports the module, not the package around it.
        nearest = {name if name in modules else name.rpartition(".")[0] for name in names}
        uses[module] = nearest - {module, ""}
    done = set()

    def walk(module, path):
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for other in sorted(uses[module]):
                walk(other, [*path, module])
            done.add(module)

    for module in modules:
        walk(module, [])


@pytest.mark.parametrize("path", files(), ids=shown)
def test_files_are_of_a_readable_length(path):
    assert len(path.read_text().splitlines()) <= 400


def is_own(attribute):
    """Whether it is an attribute of `self` or `cls`."""
    return isinstance(attribute.value, ast.Name) and attribute.value.id in ("self", "cls")


def own_names(path):
    """Underscore names that a file defines: functions, methods, attributes of `self`, fields."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def private_names_in(path, ours):
    """Underscore attributes that the file does not define, also by `getattr` with a string.

    On `self` and `cls` they may come from any class of the package.
    """
    own = set(own_names(path))
    for node in ast.walk(ast.parse(path.read_text())):
        name, known = None, own
        if isinstance(node, ast.Attribute):
            name = node.attr
            known = ours if is_own(node) else own
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in BY_NAME:
            text = node.args[1] if len(node.args) > 1 else None
            text = text.values[0] if isinstance(text, ast.JoinedStr) else text
            name = text.value if isinstance(text, ast.Constant) else None
        if name and name.startswith("_") and not name.startswith("__") and name not in known:
            yield f"{shown(path)}:{node.lineno}: {name}"


def private_strings_in(path, ours):
    """Strings that read like private names and that nothing in the package defines.

    Suffixes are not names: what follows a value in an f-string, and arguments of `removesuffix`.
    """
    tree = ast.parse(path.read_text())
    suffixes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            suffixes.update(node.values[1:])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "removesuffix":
            suffixes.update(node.args)
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in suffixes else None
        if isinstance(text, str) and re.fullmatch(r"_[A-Za-z]\w{2,}", text) and text not in ours:
            yield f"{shown(path)}:{node.lineno}: {text!r}"


def test_private_keras_is_touched_in_one_file():
    others = [path for path in files() if module_of(path) != "keras_private"]
    assert not [
        path for path in others for name in imports_of(path) if name.startswith("keras.src")
    ]
    ours = {name for path in others for name in own_names(path)}
    assert not [name for path in others for name in private_names_in(path, ours)]
    assert not [text for path in others for text in private_strings_in(path, ours)]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('METHODS = {"_compute_attention"}', 1),
        ('getattr(layer, f"_query_{kind}")', 1),
        ('name = f"{stem}_initializer"', 0),
        ('stem = name.removesuffix("_initializer")', 0),
        ('class _Plan: ...\ndef plan() -> "_Plan": ...', 0),
    ],
)
def test_strings_that_name_private_attributes_are_recognized(tmp_path, monkeypatch, source, count):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "file.py"
    path.write_text(source)
    assert len(list(private_strings_in(path, set(own_names(path))))) == count


def test_public_names_are_what_all_says():
    public = {n for n in vars(kv) if not n.startswith("_")}
    modules = {room for room in ROOMS if room in vars(kv)}
    assert public - (modules - set(kv.__all__)) == set(kv.__all__)
    assert all(getattr(kv, name).__doc__ for name in kv.__all__)
