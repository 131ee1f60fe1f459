"""What a loader yields, as calls of the model: positional and named arguments, and the target of the loss."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..passes.errors import DniGraphError
from ..passes.graph.pytrees import map_tensors

LABELS = ("labels", "label", "target", "targets")  # names under which a dict has what the loss and the heads look at


@dataclass(frozen=True)
class Batch:
    """One call of the model, and the target."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any

    def to(self, device: torch.device) -> "Batch":
        """The same with its tensors in another place."""
        args, kwargs, target = map_tensors(lambda t: t.to(device), (self.args, dict(self.kwargs), self.target))
        return Batch(tuple(args), kwargs, target)


def as_batch(item: Any) -> Batch:
    """A tuple or list is the model's arguments and behind them the target; a dict its named arguments.

    Of a dict the target is its entry "labels" (or "label", "target", "targets"), which the model gets, too.

    Raises:
        DniGraphError: it is neither.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        names = [name for name in LABELS if name in item]
        return Batch((), {**item}, item[names[0]] if names else None)
    if isinstance(item, tuple | list) and len(item) > 1:
        return Batch(tuple(item[:-1]), {}, item[-1])
    kind = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
    words = "a tuple (input, ..., target), or a dict of named arguments"
    raise DniGraphError(f"the data yields {kind}, where a batch is {words}")


def endless(data: Iterable[Any], device: torch.device) -> Iterator[Batch]:
    """The batches of a loader, over and over.

    Raises:
        DniGraphError: it yields no batch, or what is none; or it cannot be read a second time.
    """
    rounds = 0
    while True:
        empty = True
        for item in data:
            empty = False
            yield as_batch(item).to(device)
        rounds += 1
        if empty:
            words = "the data yields no batch" if rounds == 1 else "the data is read through, and yields nothing more"
            raise DniGraphError(f"{words}: give a list of batches or a loader, which can be read again and again")
