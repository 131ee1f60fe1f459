"""The specializations of a model: one list for each kind of call in each state of the model."""

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..boundaries.boundary_set import BoundarySet
from ..passes.graph.captured_graph import CapturedGraph
from ..passes.graph.digest import Same, TooLargeError, digest
from ..passes.graph.nodes import Mode
from ..passes.graph.pytrees import flatten
from ..passes.plan.plan import UNHEEDED, Note
from ..passes.sandbox.outside import prints
from .attribute_guards import AttributeGuards, looked_into, warn_changed
from .module import canonical
from .on_hooks import HookedCalls
from .specialization import Specialization, assemble

PATHS = 12  # more paths through a model for one kind of call, or more values of its attributes, are not kept


class WaysWarning(UserWarning):
    """Calls are captured anew again and again."""


@dataclass(eq=False)
class Entry:
    """The specializations for one kind of call, one for each path that such calls took through the model's code."""

    key: tuple[Any, ...]  # see `Cache.find`
    specializations: list[Specialization] = field(default_factory=list)  # the one that held last comes first
    runs_whole: bool = False  # no graph can stand for this kind of call, in eval mode
    hooked: HookedCalls | None = None  # none can in train mode: the model runs whole, with boundaries

    def held(self, specialization: Specialization, sizes: Any) -> None:
        """Note that the guards of a specialization held for inputs of these sizes."""
        specialization.proven.add(sizes)
        self.specializations.remove(specialization)
        self.specializations.insert(0, specialization)


class Cache:
    """The specializations of a model, found by what a captured graph takes for granted and no guard in it checks.

        key     the modes of all modules, grad mode and autocast, which weights learn, plain attributes of the model;
                the structure of the arguments; rank, type and device of each tensor, each other value itself
        entry   [specialization of path 1, of path 2, ...], told apart by the guards in their graphs

    Args:
        whole_arguments: the graphs take the arguments of `forward`, not the tensors in them.
    """

    def __init__(self, model: nn.Module, whole_arguments: bool):
        self.model, self.whole_arguments = model, whole_arguments
        self.shown: dict[bool, Specialization] = {}  # by mode: the first one, which the model's plan and parts show
        self._signature = inspect.signature(model.forward)
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._attributes = AttributeGuards(model)
        self._told = set[str]()  # warnings that are given once

    def __iter__(self) -> Iterator[Specialization]:
        for entry in self._entries.values():
            yield from entry.specializations

    def is_outdated(self) -> bool:
        """Whether modules of the model were replaced, or hooks came or went. Then everything is forgotten."""
        if not self._attributes.moved():
            return False
        self._entries, self.shown = {}, {}
        return True

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Entry, list[Any]]:
        """The entry for a call in the present state of the model, and the inputs of its graphs."""
        attributes = self._attributes
        modes = tuple([module.training for module in attributes.modules])
        state = (modes, Mode.now(), attributes.learning(), attributes.now())
        key: tuple[Any, ...]
        if self.whole_arguments:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            key, inputs = (state,), list(bound.arguments.values())
        else:
            args, kwargs = canonical(self.model, self._signature, args, kwargs)
            if not kwargs and {*map(type, args)} == {torch.Tensor}:  # most calls: no tree to take apart
                key, inputs = (state, None, tuple(map(_kind, args))), list(args)
            else:
                leaves, spec = flatten((args, kwargs))
                key = (state, spec, tuple(map(_kind, leaves)))
                inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key)
        for specialization in tuple(entry.specializations):
            if not specialization.assembly.follow():  # a tensor of the model is of another kind now
                entry.specializations = [s for s in entry.specializations if s is not specialization]
                self._show_what_is_left()
        return entry, inputs

    def make_room(self, entry: Entry) -> None:
        """Before the first specialization of an entry: forget the oldest of those that differ in plain attributes only.

        Warns that a plain attribute of the model has changed, if there are such.
        """
        state, *call = entry.key
        alike = []
        for key, other in self._entries.items():
            if other.specializations and list(key[1:]) == call and key[0][:-1] == state[:-1]:
                alike.append(key)
        if alike:
            warn_changed()
        others = [
            key for key, other in self._entries.items() if other.specializations and _same_but_values(key, entry.key)
        ]
        if len(others) >= PATHS:
            self._tell_once(
                f"an argument that is no tensor has had more than {PATHS} values, and each new one is captured anew, "
                "which takes much longer than a step: hand numbers that change over as tensors, torch.tensor(value)"
            )
        for keys in (alike, others):
            for key in keys[: max(0, len(keys) - PATHS + 1)]:
                if self._entries.pop(key, None) is not None:
                    self._show_what_is_left()

    def drop_a_way(self, entry: Entry) -> None:
        """Before a further specialization of an entry that has many: forget the one that was needed longest ago."""
        shown = set(map(id, self.shown.values()))
        last = next(s for s in reversed(entry.specializations) if id(s) not in shown)
        entry.specializations.remove(last)
        self._tell_once(
            f"the model takes more than {PATHS} ways through its code in calls of one kind: each further one is "
            "captured anew, which takes much longer than a step. With capture='hooks' the model runs itself, whatever "
            "way it takes"
        )

    def _tell_once(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            warnings.warn(words, WaysWarning, stacklevel=2)

    def notes(self) -> list[Note]:
        """What graphs of this model cannot heed, for its plan."""
        notes = []
        if names := self._attributes.unwatched:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            notes.append(Note(f"not watched for changes, since they hold too much: {some}", UNHEEDED))
        if prints(self.model):
            notes.append(
                Note("the forward pass prints: that is heard while it is captured, not in later calls", UNHEEDED)
            )
        return notes

    def learn(self, captured: CapturedGraph) -> bool:
        """Learn from a graph which plain attributes of the model count. True: the keys are others now."""
        attributes = self._attributes
        before = (attributes.ignored, attributes.opened)
        attributes.ignore(captured.sets)
        attributes.open(looked_into(captured.graph))
        return before != (attributes.ignored, attributes.opened)

    def copy(self, model: nn.Module, boundaries: BoundarySet, memo: dict[int, Any]) -> "Cache":
        """The same specializations on a copy of the model, with copies of its boundaries.

        Args:
            memo: id -> copy of every object of the model, as `copy.deepcopy` made it: nodes of graphs may hold them.
        """
        result = Cache(model, self.whole_arguments)
        result._attributes.ignore(self._attributes.ignored)
        result._attributes.open(self._attributes.opened)
        copies = {
            id(specialization): assemble(specialization.copy(memo), model, boundaries.modules)
            for specialization in self
        }
        here, there = self._attributes.now(), result._attributes.now()
        for (state, *call), entry in self._entries.items():
            hooked = None if entry.hooked is None else entry.hooked.copy(model, boundaries)
            if state[-1] == here:  # objects that are known by their place are other ones there
                state = (*state[:-1], there)
            key = (state, *call)
            result._entries[key] = Entry(key, [copies[id(s)] for s in entry.specializations], entry.runs_whole, hooked)
        result.shown = {training: copies[id(s)] for training, s in self.shown.items()}
        return result

    def _show_what_is_left(self) -> None:
        left = {id(specialization) for specialization in self}
        self.shown = {training: s for training, s in self.shown.items() if id(s) in left}


def _same_but_values(key: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two calls differ in the values of arguments that are no tensors, and in nothing else."""
    if len(key) != 3 or len(other) != 3 or key[:2] != other[:2] or len(key[2]) != len(other[2]) or key == other:
        return False
    return all(a == b or (len(a) == len(b) == 2 and a[0] is b[0]) for a, b in zip(key[2], other[2], strict=True))


def _kind(leaf: Any) -> Any:
    """What a graph takes for granted of an argument."""
    if isinstance(leaf, torch.Tensor):
        return (leaf.dim(), leaf.dtype, leaf.device.type, leaf.requires_grad)
    try:
        return (type(leaf), leaf if type(leaf) in (int, bool, str, type(None)) else digest(leaf))
    except TooLargeError:  # no graph is captured for such a call
        return (type(leaf), Same(leaf))
