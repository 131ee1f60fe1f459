"""Leave no trace: run a model, and put everything back as it was."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


class Snapshot:
    """What a forward pass can change: tensors, buffers, plain attributes, train flags, hooks, random numbers."""

    def __init__(self, model: nn.Module):
        self.tensors = [(t, t._version, t.detach().clone()) for t in _tensors(model)]
        self.buffers = [(m, dict(m._buffers)) for m in model.modules()]
        self.attributes = [(m, _attributes(m)) for m in model.modules()]
        self.random = random_state()

    def rewind(self) -> None:
        """Put back numbers: parameters, buffers, random states. Caches that a model made for itself stay."""
        for module, held in self.buffers:
            module._buffers.update(held)
        with torch.no_grad():
            for tensor, version, value in self.tensors:
                if tensor._version != version:
                    tensor.copy_(value)
        set_random_state(self.random)

    def restore(self) -> None:
        """Put everything back."""
        self.rewind()
        for module, (plain, contents) in self.attributes:
            for key in [key for key in vars(module) if key not in plain]:
                del module.__dict__[key]
            module.__dict__.update(plain)
            for container, copy in contents:
                _refill(container, copy)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[Snapshot]:
    """Run the block, then put the model and all random states back, also after an error."""
    snapshot = Snapshot(model)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def random_state() -> dict[str, Any]:
    """The states of all random number generators that a model may draw from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` found."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


def fresh_copies(leaves: list[Any]) -> list[Any]:
    """The leaves with a copy for each tensor, so that a model that writes into its inputs does not spoil the caller's."""
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
        for table in (module._parameters, module._buffers, vars(module)):
            for key, value in table.items():
                if isinstance(value, torch.Tensor):
                    names.setdefault(id(value), f"{path}.{key}" if path else key)
    return names


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            found |= {id(v): v for v in table.values() if isinstance(v, torch.Tensor) and v.grad_fn is None}
    return list(found.values())


def _attributes(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """The attributes, and a copy of each container among them. torch's own tables hold the submodules and the hooks."""
    plain = dict(vars(module))
    contents = [(v, v.copy()) for k, v in plain.items() if isinstance(v, list | dict | set) and k not in ("_parameters", "_buffers")]
    return plain, contents


def _refill(container: Any, copy: Any) -> None:
    if _same_objects(container, copy):
        return
    container.clear()
    container.extend(copy) if isinstance(container, list) else container.update(copy)


def _same_objects(one: Any, other: Any) -> bool:
    held, kept = (list(c.items()) if isinstance(c, dict) else list(c) for c in (one, other))
    flat = [[x for item in items for x in (item if isinstance(one, dict) else (item,))] for items in (held, kept)]
    return list(map(id, flat[0])) == list(map(id, flat[1]))
