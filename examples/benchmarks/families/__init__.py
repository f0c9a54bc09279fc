"""Small networks after published architectures, and what measures every kernel in them."""

from .network import Network
from .operations import OPERATIONS
from .published import PUBLISHED
from .sequences import SEQUENCES
from .vectors import VECTORS
from .vision import VISION

GROUPS: dict[str, dict[str, Network]] = {
    "families": {**VISION, **SEQUENCES, **VECTORS},
    "operations": OPERATIONS,
    "published": PUBLISHED,
}
