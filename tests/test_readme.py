"""The README's code runs, in order, and prints what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not README.exists(), reason="the tests run outside the checkout, against the built wheel"
    ),
]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_code_runs_and_prints_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, code in enumerate(blocks("python")):
        exec(compile(code, f"README.md block {number}", "exec"), namespace)
        if number == 0:
            assert capsys.readouterr().out == blocks("text")[0]
    assert (tmp_path / "model.keras").exists()


@pytest.mark.parametrize("page", ["README.md", "examples/RESULTS.md"])
def test_links_lead_to_files(page):
    path = README.parent / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []
