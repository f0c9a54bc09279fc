"""Writes the repository's address into the notebooks: `python tools/address.py`.

The address stands in one place, `repository` under `[tool.keras-varinit]` in pyproject.toml; empty
means that it is not known. The package's metadata takes its links from there by itself
(`hatch_build.py`); badges and installation cells of notebooks are text, and are written by this.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent

_BADGE = re.compile(r"\n*\[!\[Open in Colab\].*?\)\]\(.*?\)\n*$", re.DOTALL)

_INSTALL = """\
# Installs what this notebook imports, where it is missing; on Colab, TensorFlow is there already.
import importlib.util
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
REPOSITORY = "{address}"
wanted = {{"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}}
missing = [package for name, package in wanted.items() if importlib.util.find_spec(name) is None]
if importlib.util.find_spec("keras_varinit") is None:
    # Without an address: from a wheel beside this notebook, or the checkout that it is in.
    here = pathlib.Path.cwd()
    checkouts = [f for f in (here, *here.parents) if (f / "keras_varinit/__init__.py").exists()]
    places = [*sorted(here.glob("keras_varinit-*.whl")), *checkouts]
    if REPOSITORY:
        missing.append(f"keras-varinit[tensorflow,plot] @ git+{{REPOSITORY}}")
    elif places:
        missing.append(f"{{places[0]}}[tensorflow,plot]")
    else:
        raise ImportError("Put a wheel of keras_varinit beside this notebook: python -m build")
if missing:
    packages = " ".join(f"'{{package}}'" for package in missing)
    %pip install --quiet {{packages}}"""


def address() -> str:
    """The repository's address, such as "https://github.com/OWNER/NAME"; "" if it is not known."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["tool"]["keras-varinit"]["repository"]).rstrip("/")


def written(notebook: dict[str, Any], name: str, address: str) -> dict[str, Any]:
    """A notebook with the badge and the installation cell for an address."""
    title, install, *rest = notebook["cells"]
    text = _BADGE.sub("", "".join(title["source"]))
    if address.startswith("https://github.com/"):
        repository = address.removeprefix("https://github.com/")
        image = "https://colab.research.google.com/assets/colab-badge.svg"
        link = f"https://colab.research.google.com/github/{repository}/blob/main/examples/notebooks"
        text += f"\n\n[![Open in Colab]({image})]({link}/{name})"
    first = {**title, "source": text.splitlines(keepends=True)}
    code = _INSTALL.format(address=address).splitlines(keepends=True)
    return {**notebook, "cells": [first, {**install, "source": code}, *rest]}


def main() -> int:
    """Writes all notebooks."""
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(written(notebook, path.name, address()), indent=1, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
