"""Small networks after published architectures, and what measures every kernel in them."""

from .network import Network
from .operations import OPERATIONS

GROUPS: dict[str, dict[str, Network]] = {"families": {}, "operations": OPERATIONS}
