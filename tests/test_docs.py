"""README and guides: every snippet runs by itself and prints what it says; links lead somewhere."""

import importlib.util
import json
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


# Imports are most of what a short snippet takes. This process does them once, and forks one of its
# own for each snippet: it reads JSON (code, folder), and answers with the exit status.
_FORKS = """
import json, os, sys, traceback
import keras, keras_varinit, numpy

for line in sys.stdin:
    code, folder = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        try:
            exec(compile(code, "<snippet>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run_snippet():
    """Runs code in a folder, in a process of its own, and returns what it printed."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": BACKEND,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(code, folder):
        print(json.dumps([code, str(folder)]), file=process.stdin, flush=True)
        status = process.stdout.readline().strip()
        output, errors = (
            (folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")
        )
        assert status == "0", errors[-4000:]
        return output

    yield run
    process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "output"), list(_snippets()))
def test_snippet_runs_by_itself(code, output, run_snippet, tmp_path):
    printed = run_snippet(code, tmp_path)
    if output:
        assert printed == output


@pytest.mark.slow
def test_a_snippet_has_nothing_of_the_one_before(run_snippet, tmp_path):
    run_snippet("import keras\nlayer = keras.layers.Dense(2)\nprint(layer.name)", tmp_path)
    with pytest.raises(AssertionError, match="NameError"):
        run_snippet("keras.layers.Dense(2)", tmp_path)
    assert run_snippet("import keras\nprint(keras.layers.Dense(2).name)", tmp_path) == "dense\n"


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
