"""The error a user can fix, and the check for optional packages."""

from __future__ import annotations

import importlib
import types


class UserError(Exception):
    """A mistake or something missing that the user can fix; shown without a traceback."""


def require(module: str, package: str, purpose: str) -> types.ModuleType:
    """Imports an optional package.

    Args:
        module: The name to import.
        package: The name to install.
        purpose: What the package is needed for, to go after "is needed".

    Returns:
        The imported module.

    Raises:
        UserError: When the package, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name or module
        if absent.split(".")[0] == module.split(".")[0]:
            raise UserError(
                f"The package {package} is needed {purpose}, and it is not installed. "
                f"Get it with: pip install {package}"
            ) from error
        raise UserError(
            f"{package} is needed {purpose}, and it imports {absent!r}, which is not installed. "
            f"Get it with: pip install {absent.split('.')[0]}"
        ) from error
