"""How many bytes a backward pass keeps."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class SavedBytes:
    """Memory that autograd holds for backward passes: activations, not parameters; each storage counts once."""

    live: int = 0  # bytes held now
    peak: int = 0  # the most bytes held at once
    _users: dict[int, int] = field(default_factory=dict)

    def take(self, tensor: Tensor) -> None:
        """Autograd keeps a tensor."""
        storage = tensor.untyped_storage()
        users = self._users[storage._cdata] = self._users.get(storage._cdata, 0) + 1
        if users == 1:
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def give(self, tensor: Tensor) -> None:
        """Autograd lets a tensor go."""
        storage = tensor.untyped_storage()
        self._users[storage._cdata] -= 1
        if not self._users[storage._cdata]:
            del self._users[storage._cdata]
            self.live -= storage.nbytes()


class _Held:
    """Stands in autograd's graph for a saved tensor, and notices when it goes."""

    def __init__(self, tensor: Tensor, count: SavedBytes | None):
        # Detached: a result that its own backward saves would hold the graph that holds it.
        self.tensor, self.count = tensor.detach(), count
        if count is not None:
            count.take(tensor)

    def __del__(self) -> None:
        if self.count is not None:
            self.count.give(self.tensor)


@contextlib.contextmanager
def saved_bytes(excluding: Iterable[Tensor] = ()) -> Iterator[SavedBytes]:
    """Count what autograd saves inside the block. `excluding`: parameters, which are there anyway."""
    count = SavedBytes()
    apart = {t.untyped_storage()._cdata for t in excluding}

    def pack(tensor: Tensor) -> Any:
        return _Held(tensor, None if tensor.untyped_storage()._cdata in apart else count)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        yield count
