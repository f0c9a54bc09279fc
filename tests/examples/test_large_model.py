"""The guide to large models and its example: what they print is what they say."""

import re
from pathlib import Path

import pytest

from tests import fresh_process
from tests.example_files import EXAMPLES

GUIDE = EXAMPLES.parent / "docs" / "large_models.md"

RUN = """
import contextlib
import io
import json
import sys

sys.path.insert(0, sys.argv[1])
import large_model

from pathlib import Path
import re

text = io.StringIO()
with contextlib.redirect_stdout(text):
    large_model.main(["--blocks", "2", "--width", "2048", "--vocabulary", "40000"])
guide = io.StringIO()
namespace = {}
with contextlib.redirect_stdout(guide):
    large_model.keras.distribution.set_distribution(None)
    large_model.keras.utils.clear_session()
    for code in re.findall(r"```python\\n(.*?)```", Path(sys.argv[2]).read_text(), re.DOTALL):
        exec(code, namespace)
print(json.dumps({"example": text.getvalue(), "guide": guide.getvalue()}))
"""


@pytest.mark.slow
def test_the_example_and_the_guide_print_what_they_say(backend):
    if backend != "jax":
        pytest.skip("keras.distribution lays weights out on JAX alone")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    process = fresh_process.start(RUN, EXAMPLES, GUIDE, **flags)
    printed = fresh_process.result(process, timeout=900)
    planned = re.search(r"planned: ([\d.]+) billion weights, ([\d.]+) GiB", printed["example"])
    took = re.search(r"memory that planning took: (\d+) MiB", printed["example"])
    assert float(planned[1]) > 0.2
    assert int(took[1]) < 0.1 * 1024 * float(planned[2])
    assert "on 8 devices" in printed["example"]
    assert "(256, 1024): shards of (256, 128)" in printed["example"]
    texts = re.findall(r"```text\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert printed["guide"] == "".join(texts)


@pytest.mark.once
def test_links_of_the_guide_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (Path(GUIDE).parent / link).exists()] == []
