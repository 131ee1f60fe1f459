"""Leave no trace: run a model, and put everything back as it was."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .object_graph import Holdings
from .rng import mark, random_state, set_random_state, set_state, state_of

# Captures and checks set the random state of the process and put it back: one at a time, however many threads call.
one_at_a_time = threading.RLock()


class Snapshot:
    """What a forward pass can change: tensors, gradients, buffers, attributes, train flags, hooks, random numbers."""

    def __init__(self, model: nn.Module):
        held = Holdings.of(model)
        self.tensors = [Held(t) for t in held.tensors.values() if t.grad_fn is None]
        self.arrays = [(a, a.copy()) for a in held.arrays.values()]
        self.buffers = [(m, dict(m._buffers)) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self.attributes = [(o, dict(vars(o))) for o in held.objects.values()]
        self.contents = [(c, c.copy() if c else ()) for c in held.containers.values()]  # most are empty tables of hooks
        self.random = random_state()
        self.generators = [(g, state_of(g), mark(state_of(g))) for g in held.generators.values()]

    def rewind(self) -> None:
        """Put back numbers: parameters, buffers, random states. Caches that a model made for itself stay."""
        for module, held in self.buffers:
            if not _same_objects(module._buffers, held):
                module._buffers.update(held)
        for tensor in self.tensors:
            tensor.restore()
        set_random_state(self.random)
        for generator, state, _ in self.generators:
            set_state(generator, state)

    def rearranged(self) -> bool:
        """Whether attributes or containers hold other things since."""
        if any(not _same_objects(vars(o), plain) for o, plain in self.attributes):
            return True
        return any(not _same_objects(c, copy) for c, copy in self.contents)

    def drew(self) -> bool:
        """Whether a generator of the model's own was drawn from since."""
        return any(mark(state_of(g)) != luck for g, _, luck in self.generators)

    def written(self) -> list[torch.Tensor]:
        """The tensors that were written to since."""
        return [held.tensor for held in self.tensors if held.written()]

    def changed(self) -> list[torch.Tensor]:
        """The tensors that hold other numbers now."""
        return [held.tensor for held in self.tensors if held.changed()]

    def restore(self) -> None:
        """Put everything back."""
        self.rewind()
        for holder, plain in self.attributes:
            for key in [key for key in vars(holder) if key not in plain]:
                del holder.__dict__[key]
            for key, value in plain.items():
                if holder.__dict__.get(key) is not value or value is None:
                    holder.__dict__[key] = value
        for container, copy in self.contents:
            _refill(container, copy)
        for array, copy in self.arrays:
            if array.flags.writeable:
                array[...] = copy


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class Held:
    """A tensor and what it held: values, memory, gradient, whether it asks for one."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.data, self.value, self.version = tensor, tensor.data, tensor.detach().clone(), tensor._version
        self.wants, self.grad = tensor.requires_grad, tensor.grad
        self.grad_value = None if self.grad is None else self.grad.detach().clone()
        self.hooks = {name: dict(getattr(tensor, name, None) or {}) for name in _HOOKS}

    def written(self) -> bool:
        """Whether something was written to it since, perhaps the same numbers."""
        return self.tensor._version != self.version or self.changed()

    def changed(self) -> bool:
        """Whether it holds other numbers now."""
        now = self.tensor.data
        if now.layout != torch.strided:
            return self.tensor._version != self.version
        return now.shape != self.value.shape or not torch.equal(now, self.value)

    def restore(self) -> None:
        """Put it back, whatever the version counter says: batch norm writes its statistics without counting."""
        tensor = self.tensor
        if not _same_memory(tensor, self.data):
            tensor.data = self.data
        _put_back(tensor.data, self.value)
        if tensor._version != self.version:  # it holds what it held: graphs that saved it are valid
            torch._C._autograd._unsafe_set_version_counter((tensor,), (self.version,))
        if tensor.is_leaf and tensor.requires_grad != self.wants:
            tensor.requires_grad_(self.wants)
        if tensor.grad is not self.grad:
            tensor.grad = self.grad
        if self.grad is not None and self.grad_value is not None:
            _put_back(self.grad.data, self.grad_value)
        for name, hooks in self.hooks.items():
            if (now := getattr(tensor, name, None)) and now != hooks:
                now.clear()
                now.update(hooks)


def _put_back(data: torch.Tensor, value: torch.Tensor) -> None:
    # `data` has a version counter of its own: what the user still has to send back through stays valid.
    if data.layout != torch.strided or not torch.equal(data, value):
        data.copy_(value)


def _same_memory(tensor: torch.Tensor, data: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or data.layout != torch.strided:
        return True
    same_place = tensor.data_ptr() == data.data_ptr() and tensor.dtype == data.dtype and tensor.device == data.device
    return same_place and tensor.shape == data.shape and tensor.stride() == data.stride()


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[Snapshot]:
    """Run the block, then put the model and all random states back, also after an error."""
    with one_at_a_time:
        snapshot = Snapshot(model)
        try:
            yield snapshot
        finally:
            snapshot.restore()


def fresh_copies(leaves: list[Any]) -> list[Any]:
    """The leaves with a copy for each tensor: a model that writes into its inputs does not spoil the caller's."""
    made: dict[int, torch.Tensor] = {}

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) not in made:
            made[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return made[id(leaf)]

    return [copy(leaf) for leaf in leaves]


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


def _refill(container: Any, copy: Any) -> None:
    if (not copy and not container) or _same_objects(container, copy):
        return
    container.clear()
    container.update(copy) if isinstance(container, dict | set) else container.extend(copy)


def _same_objects(one: Any, other: Any) -> bool:
    if not one and not other:  # as most hooks of most modules are
        return True
    return list(map(id, _parts(one))) == list(map(id, _parts(other)))


def _parts(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)
