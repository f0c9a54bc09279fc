"""The package's links, from the repository's address in pyproject.toml."""

import pathlib
import tomllib

from hatchling.metadata.plugin.interface import MetadataHookInterface


class AddressHook(MetadataHookInterface):
    """Fills in `[project.urls]`, where the address is known."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict) -> None:
        """Adds the links.

        Args:
            metadata: The table `[project]`, changed in place.
        """
        text = pathlib.Path(self.root, "pyproject.toml").read_text(encoding="utf-8")
        address = tomllib.loads(text)["tool"]["keras-varinit"]["repository"].rstrip("/")
        metadata["urls"] = (
            {
                "Homepage": address,
                "Source": address,
                "Issues": f"{address}/issues",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
            }
            if address
            else {}
        )
