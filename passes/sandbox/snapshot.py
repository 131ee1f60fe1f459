"""Snapshots of a model: run it, see what the run changed, and put everything back as it was."""

import contextlib
import copy
import enum
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..graph.walk import filled_slots, slots_of
from .journal import is_noted, note, strike, undone
from .object_graph import GENERATORS, Hidden, ObjectGraph
from .rng import fingerprint, random_state, set_random_state, set_state, state_of

# Captures and checks set the random state of the process and put it back: one at a time, however many threads call.
one_at_a_time = threading.RLock()
_PATIENCE = 60.0  # seconds that a fork waits for the end of another thread's capture
_held: list[bool] = []  # whether the lock is held, for each fork that is under way


def _after_fork(child: bool) -> None:
    if _held.pop():
        one_at_a_time.release()
    elif child:  # the thread that holds it is not in the child
        one_at_a_time._at_fork_reinit()  # type: ignore[attr-defined]  # as the locks of `logging` are made anew


# A fork waits for a capture to end: the child has no thread that would end it, and put torch and the model back.
os.register_at_fork(
    before=lambda: _held.append(one_at_a_time.acquire(timeout=_PATIENCE)),
    after_in_parent=lambda: _after_fork(child=False),
    after_in_child=lambda: _after_fork(child=True),
)


class Kind(enum.Enum):
    """What a run can change in a model."""

    BUFFER = enum.auto()  # the table of buffers of a module has another tensor under a name
    ATTRIBUTE = enum.auto()  # an attribute or slot of an object is another object
    CONTAINER = enum.auto()  # a list, dict or set holds other objects
    TENSOR = enum.auto()  # a tensor was written to
    VARIABLE = enum.auto()  # a variable outside of the model is another object
    GENERATOR = enum.auto()  # a random number generator of the model's own was drawn from


ABSENT = object()  # in place of an attribute or a buffer that is not there


@dataclass(frozen=True)
class Change:
    """One thing that a run changed."""

    kind: Kind
    holder: Any  # the module, object or container; the tensor or generator itself
    name: Any = None  # of the buffer or attribute
    old: Any = None  # what stood there; a copy of the container
    new: Any = None  # what stands there now; the container itself


class Structure:
    """Which object hangs where in a model: attributes, buffers, containers. Numbers are not copied."""

    def __init__(self, graph: ObjectGraph):
        self.graph = graph
        self._attributes = [(o, dict(vars(o))) for o in graph.objects.values()]
        self._slots = [(o, filled_slots(o)) for o in graph.slotted.values()]
        self._containers = [(c, c.copy() if c else ()) for c in graph.containers.values()]  # most are empty: hooks
        self._variables = [(v, v.value) for v in graph.variables]
        self._versions = [(t, _version(t)) for t in graph.tensors.values()]
        self._buffers = []
        for module in graph.objects.values():
            if isinstance(module, nn.Module) and not isinstance(module, torch.jit.ScriptModule):
                self._buffers.append((module, dict(module._buffers)))

    def changes(self) -> Iterator[Change]:
        """What is different now, in the order of `Kind`; tensors by their version alone."""
        tables = [(Kind.BUFFER, m, before, m._buffers) for m, before in self._buffers]
        tables += [(Kind.ATTRIBUTE, o, before, vars(o)) for o, before in self._attributes]
        tables += [(Kind.ATTRIBUTE, o, before, filled_slots(o)) for o, before in self._slots]
        for kind, holder, before, now in tables:
            if not _same_objects(now, before):
                for name in before | now:
                    old, new = before.get(name, ABSENT), now.get(name, ABSENT)
                    if old is not new:
                        yield Change(kind, holder, name, old, new)
        for container, content in self._containers:
            if not _same_objects(container, content):
                yield Change(Kind.CONTAINER, container, None, content, container)
        for variable, old in self._variables:
            if (new := variable.value) is not old:
                yield Change(Kind.VARIABLE, variable, variable.name, old, new)
        for tensor, version in self._versions:
            if _version(tensor) != version:
                yield Change(Kind.TENSOR, tensor)

    def restore(self) -> None:
        """Put every object back to where it hung."""
        for holder, attributes in self._attributes:
            for name in vars(holder).keys() - attributes.keys():
                del holder.__dict__[name]
            for name, value in attributes.items():
                if holder.__dict__.get(name) is not value or value is None:
                    holder.__dict__[name] = value
        for holder, filled in self._slots:
            now, slots = filled_slots(holder), slots_of(type(holder))
            for name in now.keys() - filled.keys():
                slots[name].__delete__(holder)
            for name, value in filled.items():
                if name not in now or now[name] is not value:
                    slots[name].__set__(holder, value)  # past a class that is frozen
        for container, content in self._containers:
            if not _same_objects(container, content):
                container.clear()
                container.update(content) if isinstance(container, dict | set) else container.extend(content)
        for variable, value in self._variables:
            if variable.value is not value:
                variable.table[variable.key] = value


class Snapshot(Structure):
    """What a forward pass can change: structure, tensors, gradients, train flags, hooks, random numbers."""

    def __init__(self, graph: ObjectGraph, tensors: Iterable[torch.Tensor]):
        super().__init__(graph)
        self._tensors = [_TensorState(t) for t in tensors]
        self._arrays = [(a, a.copy()) for a in graph.arrays.values()]
        self._random = random_state()
        self._generators = [(g, state_of(g), fingerprint(state_of(g))) for g in graph.generators.values()]

    @classmethod
    def of(cls, model: nn.Module, arguments: Sequence[Any] = ()) -> "Snapshot":
        """A snapshot of all that hangs on a model, and of what objects among the arguments of a call hold."""
        graph = ObjectGraph.of(model, arguments)
        return cls(graph, [t for t in graph.tensors.values() if t.grad_fn is None])

    def written(self, same_numbers: bool = True) -> list[torch.Tensor]:
        """The tensors that were written to since; `same_numbers`: also those that hold what they held."""
        return [s.tensor for s in self._tensors if s.is_written(same_numbers)]

    def draws(self) -> Iterator[Change]:
        """The generators of the model's own that were drawn from since."""
        for generator, _, print_before in self._generators:
            if fingerprint(state_of(generator)) != print_before:
                yield Change(Kind.GENERATOR, generator)

    def rewind(self) -> None:
        """Put back numbers: parameters, buffers, random states. Caches that a model made for itself stay."""
        for module, buffers in self._buffers:
            if not _same_objects(module._buffers, buffers):
                module._buffers.update(buffers)
        for state in self._tensors:
            state.restore()
        set_random_state(self._random)
        for generator, before, _ in self._generators:
            set_state(generator, before)

    def restore(self) -> None:
        """Put everything back."""
        self.rewind()
        super().restore()
        for array, content in self._arrays:
            if array.flags.writeable:
                array[...] = content


@contextlib.contextmanager
def untouched(model: nn.Module, arguments: Sequence[Any] = ()) -> Iterator[Snapshot]:
    """Run the block, then put the model, the arguments and all random states back, also after an error.

    Hooks on saved tensors that the caller set (activation checkpointing counts them) do not see the block.
    """
    with one_at_a_time, _without_saved_tensors_hooks(), _iterators_again(model):
        snapshot = Snapshot.of(model, arguments)
        with undone(snapshot.restore):
            yield snapshot


class _Taken(Hidden):
    def __init__(self, source: Iterator[Any]):
        self.source, self.kept, self.keeps = source, list[Any](), True


class Again:
    """An iterator in place of one of the model's, so that what a run takes from it comes again in the next run."""

    def __init__(self, source: Iterator[Any]):
        self.taken, self.position = _Taken(source), 0  # a snapshot sees, and puts back, the position alone

    def __iter__(self) -> "Again":
        return self

    def __next__(self) -> Any:
        taken = self.taken
        if self.position == len(taken.kept):
            value = next(taken.source)
            if not taken.keeps:
                return value
            taken.kept.append(value)
        self.position += 1
        value = taken.kept[self.position - 1]
        if not taken.keeps and self.position == len(taken.kept):
            taken.kept, self.position = [], 0
        return value

    def __getattr__(self, name: str) -> Any:
        if name == "taken" or name.startswith("_"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.taken.source, name)


@contextlib.contextmanager
def _iterators_again(model: nn.Module) -> Iterator[None]:
    """Let iterators that are attributes of modules give the same in each run of the block, and after it once more."""
    found = []
    for module in model.modules():
        for name, value in vars(module).items():
            if hasattr(type(value), "__next__") and not (isinstance(value, Again) and value.taken.keeps):
                found.append((vars(module), name, value))

    def restore() -> None:
        for table, name, value in found:
            again = table.get(name)
            if isinstance(again, Again):
                again.taken.keeps = False
                if not again.taken.kept and again is not value:
                    table[name] = value  # nothing was taken

    with undone(restore):
        for table, name, value in found:
            if isinstance(value, Again):
                value.taken.keeps = True
            else:
                table[name] = Again(value)
        yield


@contextlib.contextmanager
def _without_saved_tensors_hooks() -> Iterator[None]:
    autograd, hooks = torch._C._autograd, list[Any]()

    def restore() -> None:
        while autograd._top_saved_tensors_default_hooks(False) is not None:
            autograd._pop_saved_tensors_default_hooks()
        for pair in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(*pair)

    with undone(restore):
        while (top := autograd._top_saved_tensors_default_hooks(False)) is not None:
            hooks.append(top)
            autograd._pop_saved_tensors_default_hooks()
        yield


@contextlib.contextmanager
def taken_back(modules: list[nn.Module], tensors: list[torch.Tensor], always: bool) -> Iterator[None]:
    """Run the block, then put some modules and tensors back, and all random states: after an error, or always.

    For runs of which it is known what they change: nothing else is looked at.
    """
    tables = {id(m._buffers): m._buffers for m in modules}
    snapshot = Snapshot(ObjectGraph(objects={id(m): m for m in modules}, containers=tables), tensors)
    entry = note(snapshot.restore)
    try:
        yield
    except BaseException:
        always = True
        raise
    finally:
        if not always:
            strike(entry)
        elif is_noted(entry):
            snapshot.restore()
            strike(entry)


@contextlib.contextmanager
def numbers_kept(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Run the block, then let some tensors hold what they held."""
    states = [_TensorState(tensor) for tensor in tensors]

    def restore() -> None:
        for state in states:
            state.restore()

    with undone(restore):
        yield


class _TensorState:
    """A tensor and what it held: values, memory, gradient, whether it asks for one."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self._data, self._version = tensor, tensor.data, _version(tensor)
        self._values = tensor.detach().clone()
        self._asks, self._grad = tensor.requires_grad, tensor.grad
        self._grad_values = None if self._grad is None else self._grad.detach().clone()
        self._hooks = [dict(tensor._backward_hooks or {}), dict(tensor._post_accumulate_grad_hooks or {})]

    def is_written(self, same_numbers: bool) -> bool:
        now, counted = self.tensor.data, _version(self.tensor) != self._version
        if now.layout != torch.strided or (same_numbers and counted):
            return counted
        return now.shape != self._values.shape or not _holds(now, self._values)

    def restore(self) -> None:
        """Put it back, whatever the version counter says: batch norm writes its statistics without counting."""
        tensor = self.tensor
        if not _same_memory(tensor, self._data):
            tensor.data = self._data
        _write_back(tensor, self._values)
        if _version(tensor) != self._version:  # it holds what it held: graphs that saved it are valid
            torch._C._autograd._unsafe_set_version_counter((tensor,), (self._version,))
        if tensor.is_leaf and tensor.requires_grad != self._asks:
            tensor.requires_grad_(self._asks)
        if tensor.grad is not self._grad:
            tensor.grad = self._grad
        if self._grad is not None and self._grad_values is not None:
            _write_back(self._grad, self._grad_values)
        tables = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
        for now, hooks in zip(tables, self._hooks, strict=True):
            if now and now != hooks:
                now.clear()
                now.update(hooks)


def _write_back(tensor: torch.Tensor, values: torch.Tensor) -> None:
    if tensor.is_sparse:  # `copy_` would give these numbers to `tensor.data`, and not to the tensor
        tensor.data = values.clone()
        return
    data = tensor.data  # it has a version counter of its own: what the user still has to send back through stays valid
    if data.layout != torch.strided or not _holds(data, values):
        data.copy_(values)


def _holds(data: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether a tensor has these numbers, as far as one can tell in little time: a nan is none."""
    return data.is_meta or torch.equal(data, values)


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to. Tensors of inference mode do not count: their numbers tell."""
    return 0 if tensor.is_inference() else tensor._version


def _same_memory(tensor: torch.Tensor, data: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or data.layout != torch.strided:
        return True
    same_place = tensor.data_ptr() == data.data_ptr() and tensor.dtype == data.dtype and tensor.device == data.device
    return same_place and tensor.shape == data.shape and tensor.stride() == data.stride()


def fresh_copies(leaves: list[Any]) -> list[Any]:
    """The leaves with a copy for each tensor and generator: a model that writes into them or draws from them spoils
    none of the caller's.
    """
    copies: dict[int, Any] = {}  # one tensor given twice stays one
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and id(leaf) not in copies:
            copies[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        elif isinstance(leaf, GENERATORS):
            copies[id(leaf)] = leaf.clone_state() if isinstance(leaf, torch.Generator) else copy.deepcopy(leaf)
    return [copies.get(id(leaf), leaf) for leaf in leaves]


def tensor_names(model: nn.Module) -> dict[int, str]:
    """The path of each tensor that the model owns: parameters, buffers, and tensors kept as plain attributes."""
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        tables = (module._parameters, module._buffers) if not scripted else ()
        for table in (*tables, vars(module)):
            for key, value in table.items():
                if isinstance(value, torch.Tensor):
                    names.setdefault(id(value), f"{path}.{key}" if path else key)
    return names


def _same_objects(one: Any, other: Any) -> bool:
    if not one or not other:  # as most tables of hooks of most modules are
        return not one and not other
    if isinstance(one, dict):
        return [*map(id, one), *map(id, one.values())] == [*map(id, other), *map(id, other.values())]
    return list(map(id, one)) == list(map(id, other))
