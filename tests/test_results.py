"""What all reports share: looking up rows, printing, HTML, dictionaries and dataframes."""

import dataclasses
import html.parser
import json
import sys

import keras
import numpy as np
import pytest

import keras_varinit as kv
from keras_varinit.tables import Column, Gap, Table, grouped

pytestmark = pytest.mark.once

L = keras.layers


def network(depth=2, initializer="asv_forward", width=8):
    layers = [L.Dense(width, "relu", kernel_initializer=initializer) for _ in range(depth)]
    return keras.Sequential([keras.Input((width,)), *layers])


def data(width=8):
    return np.random.default_rng(0).standard_normal((16, width)).astype("float32")


REPORTS = {
    "inject": kv.inject,
    "initialize": lambda model: kv.initialize(model, seed=0),
    "recommend": kv.recommend,
    "lint": kv.lint,
    "analyze": kv.analyze,
    "measure_signal": lambda model: kv.measure_signal(model, data(), verbose=0),
    "calibrate": lambda model: kv.calibrate(model, data(), verbose=0),
}


@pytest.fixture(params=REPORTS)
def report(request):
    return REPORTS[request.param](network())


class Cells(html.parser.HTMLParser):
    """The text of each cell of the first table, and whether all tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.tables = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tables += tag == "table"
        if tag == "tr" and self.tables == 1:
            self.rows.append([])
        if tag in ("td", "th") and self.tables == 1:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th") and self.tables == 1:
            self.rows[-1][-1] += text


def test_repr_is_the_table_and_html_has_the_same_cells(report):
    assert repr(report) == str(report) == report.to_text()
    cells = Cells(report._repr_html_())
    assert cells.open == []
    assert len(cells.rows) == len(report) + 1
    words = str(report).split()
    for row in cells.rows:
        assert set(" ".join(row).split()) <= set(words)


def test_rows_are_found_by_number_and_by_path(report):
    first = next(iter(report))
    assert report[0] is first or report[0] == first
    assert len(report[1:]) == len(report) - 1
    assert report[first.path] == report[0]
    assert first.path in report
    assert report[0] in report
    assert "nothing" not in report
    with pytest.raises(KeyError, match=r"no row for 'nothing'\. (Paths|Names): \["):
        report["nothing"]
    with pytest.raises(IndexError):
        report[len(report)]
    with pytest.raises(KeyError, match="Did you mean"):
        report[first.path[:-1]]


def test_dictionaries_are_json(report):
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(plain["rows"]) == len(report)
    assert [row["path"] for row in plain["rows"]] == [row.path for row in report]
    assert plain["rows"][0] == report[0].to_dict()


def test_dataframes_have_a_line_per_row(report):
    pytest.importorskip("pandas")
    frame = report.to_dataframe()
    assert list(frame["path"]) == [row.path for row in report]
    assert not any("histogram" in name for name in frame.columns)
    if hasattr(report[0], "context"):
        depths = frame["context.depth"].dropna()
        assert list(depths) == [row.context.depth for row in report if row.context is not None]


def test_an_empty_dataframe_has_its_columns():
    pytest.importorskip("pandas")
    frame = kv.lint(network(initializer="he_normal")).to_dataframe()
    assert list(frame.columns) == ["rule", "path", "message"]
    assert len(frame) == 0


def test_without_pandas_the_extra_is_named(monkeypatch, report):
    monkeypatch.setitem(sys.modules, "pandas", None)
    kind = type(report).__name__
    with pytest.raises(ImportError, match=rf"{kind}\.to_dataframe needs pandas.*varinit\[pandas\]"):
        report.to_dataframe()


def test_numbers_that_are_not_finite():
    model = network()
    model.layers[0].kernel.assign(np.full((8, 8), np.inf))
    report = kv.measure_signal(model, data(), verbose=0)
    assert not np.isfinite(report[0].mean)
    assert report.to_dict()["rows"][0]["mean"] is None
    assert report[0].to_record()["mean"] is report[0].mean


def test_long_models_are_folded():
    model = network(depth=35)
    report = kv.initialize(model, seed=0)
    assert len(report) == 70
    lines = str(report).splitlines()
    kernels = [row.path for row in report if row.path.endswith("kernel")]
    assert [line.split()[0] for line in lines[1:36]] == kernels
    assert lines[36] == "and 35 other weights: 35 drawn"
    assert "(to_text() lists all 70 rows)" in lines
    whole = report.to_text().splitlines()
    assert [line.split()[0] for line in whole[1:71]] == [row.path for row in report]
    page = report._repr_html_()
    assert "<summary>all 70 rows</summary>" in page
    assert page.count("<tr>") == 36 + 71


def test_very_long_models_lose_their_middle():
    report = kv.analyze(network(depth=80))
    lines = str(report).splitlines()
    paths = [row.path for row in report]
    assert [line.split()[0] for line in lines[1:52]] == [*paths[:25], "…", *paths[-25:]]
    assert lines[26] == "… 30 kernels"


def test_the_shown_columns_line_up_under_their_headers():
    model = keras.Sequential([keras.Input((8,)), L.Dense(8, name="d" * 90), L.Dense(8, name="e")])
    text = str(kv.initialize(model, seed=0))
    lines = text.splitlines()[:5]
    assert "d" * 90 + "/kernel" in text
    assert len({line.index(word) for line, word in zip(lines[1:], ["drawn"] * 4, strict=True)}) == 1
    assert lines[0].index("status") == lines[1].index("drawn")


def test_paths_in_folded_tables_keep_beginning_and_end():
    layers = [L.Dense(4, name=f"{'x' * 90}_{n}") for n in range(61)]
    model = keras.Sequential([keras.Input((4,)), *layers], name="outer")
    line = str(kv.analyze(model)).splitlines()[1]
    assert line.startswith(("x" * 24 + "…", "outer/" + "x" * 18 + "…"))
    assert "x_0/kernel " in line
    assert len(line.split()[0]) == 72
    assert "x" * 90 in kv.analyze(model).to_text()


COLUMNS = (
    Column("path", kind="path"),
    Column("n", "how many", "number"),
    Column("why", "", "reason"),
)
SHARED = "skipped: the normalization after it cancels its scale"


def test_a_text_that_rows_share_is_a_footnote():
    table = Table(COLUMNS, [("a", "1", SHARED), ("b", "10", "drawn"), ("c", "3", SHARED)], ["sum"])
    assert table.text().splitlines() == [
        "path   n  why",
        "a      1  skipped [1]",
        "b     10  drawn",
        "c      3  skipped [1]",
        "[1] the normalization after it cancels its scale",
        "",
        "n  how many",
        "",
        "sum",
    ]
    assert "[1]" not in Table(COLUMNS, [("a", "1", SHARED)]).text()


def test_long_prose_is_wrapped_in_its_column():
    words = " ".join(["word"] * 40)
    columns = (Column("path"), Column("message", kind="prose"))
    lines = Table(columns, [("a", words), ("b", words)]).text().splitlines()
    assert len(lines) == 1 + 2 * 3
    assert all(line.startswith(("path", "a", "b", "      word")) for line in lines)
    assert max(map(len, lines)) <= 6 + 72


def test_optional_columns_and_gaps():
    columns = (Column("a"), Column("b", "told", "number", is_optional=True))
    assert Table(columns, [("x", ""), Gap("… 3 more"), ("y", "")]).text() == "a\nx\n… 3 more\ny"
    assert '<td colspan="2"' in Table(columns, [("x", "1"), Gap("…")]).html()


def test_html_is_escaped():
    page = Table((Column("<a>", "a & b"),), [("<script>",)], ["1 < 2"], notes=["x: y > z"]).html()
    assert "<script>" not in page
    for text in ("&lt;a&gt;", "a &amp; b", "&lt;script&gt;", "1 &lt; 2", "x: y &gt; z"):
        assert text in page


def test_notes_that_say_the_same_are_one():
    notes = ["a/k: unknown", "b/k: unknown", "c: other", "d/k: unknown", "e/k: unknown", "alone"]
    assert list(grouped(notes)) == ["unknown (4: a/k, …, e/k)", "c: other", "alone"]


def test_findings_are_a_sequence_that_is_false_when_empty():
    healthy, ill = kv.lint(network(initializer="he_normal")), kv.lint(network())
    assert not healthy
    assert healthy == []
    assert str(healthy) == "no findings"
    assert ill
    assert ill != []
    assert ill == list(ill)
    assert str(ill).splitlines()[-1] == "2 findings"


def test_results_and_their_rows_are_public():
    for name in kv.__all__:
        public = getattr(kv, name)
        if isinstance(public, type) and issubclass(public, kv.Results) and public is not kv.Results:
            assert issubclass(public._row, kv.Row)
            assert public._row.__name__ in kv.__all__
            assert len(public._columns) == len({*map(id, public._columns)})
            assert dataclasses.is_dataclass(public)
