"""The backend of `torch.compile`: Dynamo captures, guards and recompiles; its graphs are cut and get boundaries."""

from .backend import Backend, backend_of, dnigraph
from .interfaces import Interfaces, UnmatchedWarning

__all__ = ["Backend", "Interfaces", "UnmatchedWarning", "backend_of", "dnigraph"]
