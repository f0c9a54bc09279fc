"""The package's links and its README, from the repository's address in pyproject.toml."""

import pathlib
import re
import tomllib

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(markdown: str, address: str) -> str:
    """The README with links that work on PyPI, which does not have the files beside it."""

    def replaced(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if not address:
            return "" if image else text
        return f"{image}[{text}]({address}/{'raw' if image else 'blob'}/main/{target})"

    return _RELATIVE.sub(replaced, markdown)


class AddressHook(MetadataHookInterface):
    """Fills in `[project.urls]`, where the address is known, and the README."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict) -> None:
        """Adds the links and the README.

        Args:
            metadata: The table `[project]`, changed in place.
        """
        root = pathlib.Path(self.root)
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        address = tomllib.loads(text)["tool"]["keras-varinit"]["repository"].rstrip("/")
        readme = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(readme, address),
        }
        metadata["urls"] = (
            {
                "Homepage": address,
                "Documentation": _pages(address),
                "Source": address,
                "Issues": f"{address}/issues",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
            }
            if address
            else {}
        )


def _pages(address: str) -> str:
    """Where the workflow `docs` publishes the site: on GitHub Pages, else the repository."""
    owner, _, name = address.removeprefix("https://github.com/").partition("/")
    return f"https://{owner}.github.io/{name}/" if "github.com" in address else address
