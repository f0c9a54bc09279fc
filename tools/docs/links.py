"""Checks the links of a built site: `python tools/docs/links.py site [--external]`.

Every `href` and `src` must lead to a file of the site, and every fragment to an anchor there.
Nothing may be loaded from elsewhere: scripts, styles and pictures are the site's own. With
`--external`, addresses that pages link to are requested too; that needs the internet.
"""

from __future__ import annotations

import argparse
import html.parser
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request


class Page(html.parser.HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects one element's anchors and links."""
        values = dict(attrs)
        self.anchors |= {values[k] or "" for k in ("id", "name") if values.get(k)}
        target = values.get("src") or values.get("href")
        if target is None or values.get("rel") in ("canonical", "prev", "next"):
            return
        (self.links if tag == "a" else self.loaded).add(target)


def problems(site: pathlib.Path) -> tuple[list[str], set[str]]:
    """Links that lead nowhere, and the addresses of other sites."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    broken, external = [], set()
    for path, page in pages.items():
        for target in sorted(page.links | page.loaded):
            parts = urllib.parse.urlsplit(target)
            if parts.scheme in ("http", "https") or target.startswith("//"):
                if target in page.loaded:
                    broken.append(f"{path}: loads {target} from elsewhere")
                else:
                    external.add(target.partition("#")[0])
                continue
            if parts.scheme or target.startswith(
                "/"
            ):  # mailto:, data:; 404.html links from the root
                continue
            name = urllib.parse.unquote(parts.path)
            place = (path.parent / name).resolve() if name else path.resolve()
            if place.is_dir():
                place = place / "index.html"
            fragment = urllib.parse.unquote(parts.fragment)
            if not place.exists():
                broken.append(f"{path}: {target} does not exist")
            elif fragment and place in pages and fragment not in pages[place].anchors:
                broken.append(f"{path}: {target}: there is no such anchor")
    return broken, external


def unreachable(address: str) -> str | None:
    """Why an address cannot be reached, or None."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (links.py)"})
    try:
        with urllib.request.urlopen(request, timeout=20):
            return None
    except urllib.error.HTTPError as error:
        # Publishers refuse programs; that is not a broken link.
        return None if error.code in (403, 429) else f"{address}: {error}"
    except OSError as error:
        return f"{address}: {error}"


def main() -> int:
    """Returns 1 if a link is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("--external", action="store_true", help="request other sites' pages too")
    options = parser.parse_args()
    site = options.site.resolve()
    broken, external = problems(site)
    if options.external:
        broken += [why for why in map(unreachable, sorted(external)) if why]
    print("\n".join(broken))
    print(f"{len(broken)} broken links, {len(external)} addresses of other sites")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
