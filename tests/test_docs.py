"""README and guides: every snippet runs by itself and prints what it says; links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_varinit as kv

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not README.exists(), reason="the tests run outside the checkout, against the built wheel"
    ),
]

PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))] if README.exists() else []
# JAX is imported in half the time that the other backends take.
BACKEND = "jax" if importlib.util.find_spec("jax") else keras.backend.backend()

_SNIPPET = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _text(path):
    return path.read_text(encoding="utf-8")


def _snippets():
    """Code and output of all snippets; the same one on two pages counts once."""
    seen = set()
    for page in PAGES:
        for number, (code, output) in enumerate(_SNIPPET.findall(_text(page)), 1):
            if code not in seen:
                seen.add(code)
                yield pytest.param(code, output, id=f"{_name(page)}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize(("code", "output"), list(_snippets()))
def test_snippet_runs_by_itself(code, output, tmp_path):
    environment = {
        **os.environ,
        "KERAS_BACKEND": BACKEND,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    if output:
        assert done.stdout == output


def test_pages_have_snippets():
    assert len(list(_snippets())) >= 20
    # Nothing that looks like Python escapes the test above.
    fences = {fence for page in PAGES for fence in re.findall(r"^```(\w+)", _text(page), re.M)}
    assert fences <= {"python", "text", "sh", "bash", "yaml", "bibtex"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "RESULTS.md"], ids=_name)
def test_links_lead_to_files(page):
    missing = [link for link in _LINK.findall(_text(page)) if not _target(page, link).exists()]
    assert missing == []


def _target(page, link):
    """The file behind a link; the site makes some pages of files outside docs/."""
    if page.is_relative_to(ROOT / "docs") and link in ("results.md", "../results.md"):
        return ROOT / "examples" / "RESULTS.md"
    return page.parent / link


def test_reference_has_every_public_name():
    pages = (ROOT / "docs" / "api").glob("*.md")
    entries = [
        n for page in pages for n in re.findall(r"^::: keras_varinit\.(\w+)$", _text(page), re.M)
    ]
    assert sorted(entries) == sorted(kv.__all__)


@pytest.mark.parametrize(
    "initializer",
    [
        kind
        for kind in vars(kv).values()
        if isinstance(kind, type) and issubclass(kind, keras.initializers.Initializer)
    ],
)
def test_initializers_document_arguments_example_and_source(initializer):
    text = initializer.__doc__
    for section in ("Args:", "Shape:", "Units:", "Raises:", "Example:", "Reference:"):
        assert re.search(rf"^    {section}", text, re.M), f"no {section}"
    assert ">>>" in text
