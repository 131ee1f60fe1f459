"""What a run changed in the model: each kind of change has one policy, in `POLICY`.

    buffer      replaced or made by the run: replayed.    Of another shape, after it was read: refused.
    attribute   of a module, computed by the run: replayed.    Another number, or a tensor that was read: refused.
    container   of another length, or with an entry that was read and is another one now: refused.
    tensor      that the first call made, read and written: refused.    Others: the nodes that write it are replayed.
    variable    outside of the model, another value now: refused. So are containers and objects that it holds.
    generator   of the model's own, drawn from: refused.

A change that is refused would decide the next call, and no graph could know. It counts only where the model has run
before (`settled`): a first call may fill caches. What no row names is ignored.
"""

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import CaptureError, StatefulModelError
from ...graph.equality import equal
from ...graph.nodes import keep, keep_buffer, set_attribute
from ...sandbox.object_graph import ObjectGraph
from ...sandbox.snapshot import ABSENT, Change, Kind, Structure
from .symbols import is_symbol
from .writer import GraphWriter

Attributes = Collection[tuple[int, str]]  # id of the module, name

_SCALARS = (int, float, bool, str)
_DRAWS = "the model draws from a random number generator of its own"


class ChangesOutsideError(StatefulModelError):
    """A call after the first changes something that does not hang on the model, so that every call does."""


class SideEffects:
    """The side effects of one run: written for replays, or refused.

    `allowed`: the attributes that replays may set; None: all. `settled`: the model ran before, so that what changes now
    changes in every call.
    """

    def __init__(self, model: nn.Module, writer: GraphWriter, allowed: Attributes | None, settled: bool):
        self.writer, self.settled, self._allowed = writer, settled, allowed
        self.paths = {id(m): path for path, m in model.named_modules()}
        self.attributes: set[tuple[int, str]] = set()  # those that replays set
        self.sets: set[tuple[str, str]] = set()  # all that the run set: path of the module, name
        self._before = Structure(ObjectGraph.of(model))
        self._changes_outside = False

    def write(self, draws: Iterable[Change]) -> None:
        """Write the changes that replays make too.

        Raises:
            CaptureError: a change cannot be replayed. `StatefulModelError`: the changes decide the next call.
        """
        reasons = [POLICY[change.kind](self, change) for change in (*draws, *self._before.changes())]
        if refused := [reason for reason in reasons if reason is not None]:
            raise (ChangesOutsideError if self._changes_outside else StatefulModelError)(refused)

    def buffer(self, change: Change) -> str | None:
        """One of the same shape is written into the old one; another is registered or set."""
        module, name, old, new = change.holder, change.name, change.old, change.new
        is_first = old is ABSENT or old is None
        if id(module) not in self.paths or (is_first and not self._is_computed(new)):
            return None
        if not is_first and isinstance(new, torch.Tensor) and new.shape == old.shape and new.dtype == old.dtype:
            self.writer.call(set_attribute, (self.writer.attribute(old), "data", self.writer.arguments(new)))
            module._buffers[name] = old
        elif is_first:
            persistent = name not in module._non_persistent_buffers_set
            self._keep(module, name, functools.partial(keep_buffer, module, name, persistent), new)
        elif self._is_computed(new) and not self._is_computed(old):  # nobody has read the old one
            self._keep(module, name, functools.partial(keep, module, name), new)
        else:
            path = f"{self.paths[id(module)]}.{name}".lstrip(".")
            raise CaptureError([f"buffer '{path}' is replaced by one of another shape or type"])
        return None

    def attribute(self, change: Change) -> str | None:
        """Replays set it too, if its value comes from the run."""
        holder, name, key = change.holder, change.name, (id(change.holder), change.name)
        path = self.paths.get(id(holder))
        if path is not None and change.new is not ABSENT:
            self.sets.add((path, name))
            if (self._allowed is None or key in self._allowed) and self.writer.reaches(change.new):
                self.attributes.add(key)
                self._keep(holder, name, functools.partial(keep, holder, name), change.new)
                return None
        outside = id(holder) in self._before.graph.outside and not equal(change.old, change.new)
        if not self.settled or not (outside or self._decides(change.old, change.new)):
            return None
        self._changes_outside |= outside
        owner = f"a {type(holder).__name__}" if path is None else f"'{path}'" if path else "the model"
        return f"'{name}' of {owner} changes with every call: state kept between calls"

    def container(self, change: Change) -> str | None:
        """Refused where it grows or shrinks, or where the run read an entry that is another one now."""
        before, now = change.old, change.new
        if not self.settled:
            return None
        outside = id(change.holder) in self._before.graph.outside
        words = f"a {type(now).__name__} of {len(before)} things {'outside of' if outside else 'in'} the model"
        if outside:
            self._changes_outside = True
            return f"{words} changes with every call, which no replay does"
        if len(now) != len(before):
            return f"{words} has {len(now)} after a call: state kept between calls"
        keys = before if isinstance(now, dict) else range(0 if isinstance(now, set) else len(now))
        if not any(self._decides(before[key], now[key]) for key in keys if not isinstance(now, dict) or key in now):
            return None
        return f"{words} changes with every call: state kept between calls"

    def tensor(self, change: Change) -> str | None:
        """Refused where the first call made it: the graph holds it as a constant."""
        tensor = change.holder
        if not self.settled or id(tensor) in self.writer.names or not self._is_computed(tensor):
            return None
        shape = tuple(tensor.shape)
        return f"a tensor of shape {shape} that the model made in its first call is written in every call"

    def _keep(self, module: nn.Module, name: str, effect: "functools.partial[None]", value: Any) -> None:
        self.sets.add((self.paths[id(module)], name))
        effect.__name__ = f"keep_{name}"  # type: ignore[attr-defined]  # the name of the node
        self.writer.write(effect, (value,), {}, opaque=True)

    def _is_computed(self, value: Any) -> bool:
        """Whether the run computed or read a tensor."""
        return isinstance(value, torch.Tensor) and self.writer.node_of(value) is not None

    def _decides(self, old: Any, new: Any) -> bool:
        """Whether another value here changes what the next call does: a plain number, or a tensor that was read."""
        if old is new or is_symbol(old):
            return False
        if isinstance(old, _SCALARS):
            return type(new) in _SCALARS and new != old
        return self._is_computed(old)

    def variable(self, change: Change) -> str | None:
        """Refused where it is another value: replays set none."""
        if not self.settled or equal(change.old, change.new):
            return None
        self._changes_outside = True
        return f"'{change.name}', a variable outside of the model, changes with every call"


POLICY: dict[Kind, Callable[[SideEffects, Change], str | None]] = {
    Kind.BUFFER: SideEffects.buffer,
    Kind.ATTRIBUTE: SideEffects.attribute,
    Kind.CONTAINER: SideEffects.container,
    Kind.TENSOR: SideEffects.tensor,
    Kind.VARIABLE: SideEffects.variable,
    Kind.GENERATOR: lambda *_: _DRAWS,  # replays draw from torch's default one
}


def refuse_exported(changes: Iterable[Change]) -> None:
    """The policy for exported graphs, which replay only writes to buffers.

    Raises:
        CaptureError: one of `changes`, which a call after the first made, is another change.
    """
    for change in changes:
        old, new = change.old, change.new
        if change.kind is Kind.GENERATOR:
            raise CaptureError([_DRAWS])
        if change.kind is Kind.VARIABLE:
            raise CaptureError([f"'{change.name}', a variable outside of the model, changes with every call"])
        other_number = isinstance(old, _SCALARS) and not equal(old, new)
        if change.kind is Kind.ATTRIBUTE and (other_number or isinstance(old, torch.Tensor | np.ndarray)):
            raise CaptureError([f"the model sets '{change.name}' in every call, which an exported graph does not"])
        if change.kind is Kind.CONTAINER and len(old) != len(new):
            words = "the model collects things in a container in every call, which an exported graph does not"
            raise CaptureError([words])


def refuse_changed_containers(before: Any, after: Any, names: list[str]) -> None:
    """Check the containers among the inputs. `before`, `after`: the inputs, each as its leaves and their structure.

    Raises:
        StatefulModelError: the run put other tensors into them. A graph returns results; they belong to the caller.
    """
    (leaves, structure), (leaves_after, structure_after) = before, after
    triples = zip(names, leaves, leaves_after, strict=False)
    others = [name for name, x, y in triples if isinstance(x, torch.Tensor) and x is not y]
    if others or structure != structure_after or len(leaves) != len(leaves_after):
        where = f"'{others[0]}'" if others else "one of its inputs"
        words = f"the model puts something else into {where}, a container that belongs to the caller"
        raise StatefulModelError([words])
