"""Hooks of the documentation site, which mkdocs.yml names.

* The address of the repository and of the site follow from pyproject.toml (`tools/address.py`).
* `examples/RESULTS.md`, its figures and `CHANGELOG.md` become pages of the site without copies.
* Links to files of the repository outside docs/ lead to these pages, or to the repository; where
  its address is not set, they are plain text.
* Formulas become MathML when the site is built, which browsers show without a script, in STIX Two
  Math; the part of that font that formulas use is one of the site's files.
"""

from __future__ import annotations

import html
import logging
import os
import pathlib
import re
import sys
from typing import Any

import ziamath
from fontTools import subset
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import address  # noqa: E402 - a module of tools/

PAGES = {"examples/RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md"}
FIGURES = "examples/figures"

_LOG = logging.getLogger("mkdocs.hooks.keras_varinit")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# A prime is a raised sign already; latex2mathml raises it once more.
_PRIME = r"<m[io]>&#x02032;</m[io]>"
_UP = '<mo lspace="0" rspace="0">&#x02032;</mo>'
_ONE = r"<mi>[^<]*</mi>"
_PRIMES = (
    (re.compile(rf"<msup>({_ONE}){_PRIME}</msup>"), rf"<mrow>\1{_UP}</mrow>"),
    (
        re.compile(rf"<msubsup>({_ONE})({_ONE}){_PRIME}</msubsup>"),
        rf"<mrow><msub>\1\2</msub>{_UP}</mrow>",
    ),
)
# Latin, Greek, punctuation, arrows and operators, double-struck capitals, italic letters.
_IN_FORMULAS = (
    *((0x20, 0x7E), (0xA0, 0xFF), (0x391, 0x3F5), (0x2010, 0x2061), (0x210E, 0x210E)),
    *((0x2190, 0x21AA), (0x2200, 0x22FF), (0x1D434, 0x1D467), (0x1D538, 0x1D550)),
    (0x1D6E2, 0x1D71B),
)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Fills in the addresses, where the repository's is known."""
    repository = address.address()
    config["extra"]["repository"] = repository
    if repository.startswith("https://github.com/"):
        owner, name = repository.removeprefix("https://github.com/").split("/")
        config["repo_url"], config["repo_name"] = repository, f"{owner}/{name}"
        config["site_url"] = f"https://{owner}.github.io/{name}/"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages and figures that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for figure in sorted((ROOT / FIGURES).glob("*.png")):
        name = f"figures/{figure.name}"
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links to files of the repository into links that work on the site."""
    places = {page: source for source, page in PAGES.items()}
    source = pathlib.PurePosixPath(places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def replaced(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, fragment = target.partition("#")
        place = pathlib.PurePosixPath(os.path.normpath(source.parent / path)).as_posix()
        if place.startswith("docs/") and source.parts[0] == "docs":
            return match[0]
        if not (ROOT / place).exists():
            _LOG.warning("%s: %s does not exist", source, target)
        here = _on_site(place, page.file.src_uri)
        if here is not None:
            return f"{image}[{text}]({here}{'#' + fragment if fragment else ''})"
        repository = config["extra"]["repository"]
        return f"[{text}]({repository}/blob/main/{place})" if repository else text

    return _LINK.sub(replaced, markdown)


def _on_site(place: str, page: str) -> str | None:
    """A file of the repository as a link from a page; None if the site does not have it."""
    if place.startswith(f"{FIGURES}/"):
        target = place.removeprefix("examples/")
    elif place in PAGES:
        target = PAGES[place]
    elif place.startswith("docs/"):
        target = place.removeprefix("docs/")
    else:
        return None
    return "../" * page.count("/") + target


def on_page_content(content: str, **_: Any) -> str:
    """Typesets the formulas."""

    def typeset(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        math = convert(html.unescape(match[2]).strip(), display=display)
        for pattern, replacement in _PRIMES:
            math = pattern.sub(replacement, math)
        return math

    return _FORMULA.sub(typeset, content)


def on_post_build(config: Any) -> None:
    """Writes the font of the formulas, cut down to what they use."""
    source = pathlib.Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True)
    font = subset.load_font(str(source), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[n for first, last in _IN_FORMULAS for n in range(first, last + 1)])
    subsetter.subset(font)
    subset.save_font(font, str(pathlib.Path(config["site_dir"], "assets", "math.woff")), options)
