"""What a run leaves behind in the model: buffers that it replaced, and state that no graph can keep."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...errors import CaptureError, StatefulModelError
from ...graph.nodes import set_attribute
from ...sandbox.object_graph import Holdings
from .module_calls import Calls
from .symbols import is_symbol
from .writer import Tape

_SCALARS = (int, float, bool, str)


class Remains:
    """Compares what hangs on the model before and after a run."""

    def __init__(self, model: nn.Module, tape: Tape, calls: Calls):
        self.tape, self.calls, self.names = tape, calls, _names(model)
        self.modules = _plain_modules(model)
        self.buffers = [(m, key, b) for m in self.modules for key, b in m._buffers.items() if b is not None]
        self.known = {(id(m), key) for m, key, _ in self.buffers}
        held = Holdings.of(model)
        calls.lasting = held.objects
        self.objects = [(o, dict(vars(o))) for o in held.objects.values()]
        self.containers = [(c, c.copy() if c else ()) for c in held.containers.values()]
        self.constants = [(t, t._version) for t in held.tensors.values() if id(t) not in tape.names]

    def write_back(self) -> None:
        """Write the buffers that were replaced by assignment, and those that the run made."""
        for module, key, old in self.buffers:
            if module._buffers.get(key) is not old:
                self._write_back(module, key, old)
        for module in self.modules:
            for key, new in module._buffers.items():
                if (id(module), key) not in self.known and new is not None and self.tape.node_of(new) is not None:
                    self.calls.buffer_registered(module, key, new)

    def write_attributes(self) -> None:
        """Write the attributes of modules that hold values of this run."""
        for holder, before in self.objects:
            if isinstance(holder, nn.Module) and id(holder) in self.names:
                for name, new in vars(holder).items():
                    if before.get(name) is not new:
                        self.calls.attribute_left(holder, name, new)

    def refuse_state(self) -> None:
        """Look for what the run read of the model and left different for the next run.

        Raises:
            CaptureError: there is such a thing.
        """
        if reasons := [*self._changed_attributes(), *self._changed_containers(), *self._changed_constants()]:
            raise StatefulModelError(reasons)

    def _write_back(self, module: nn.Module, key: str, old: torch.Tensor) -> None:
        new = module._buffers.get(key)
        if new is None or new.shape != old.shape or new.dtype != old.dtype:
            if new is None or self.tape.node_of(old) is not None or self.tape.node_of(new) is None:
                said = f"buffer '{self.tape.names[id(old)]}' is replaced by one of another shape or type"
                raise CaptureError([said])
            self.calls.buffer_replaced(module, key, new)  # nobody has read the old one
            return
        self.tape.call(set_attribute, (self.tape.attribute(old), "data", self.tape.arguments(new)))
        module._buffers[key] = old

    def _changed_attributes(self) -> list[str]:
        found = []
        for holder, before in self.objects:
            for name, old in before.items():
                new = vars(holder).get(name)
                if not self.calls.is_kept(holder, name) and self._is_state(old, new):
                    found.append(f"'{name}' of {self._said(holder)} changes with every call: state kept between calls")
        return found

    def _is_state(self, old: Any, new: Any) -> bool:
        if old is new or is_symbol(old):
            return False
        if isinstance(old, _SCALARS):
            return type(new) in _SCALARS and new != old
        return isinstance(old, torch.Tensor) and self.tape.node_of(old) is not None

    def _changed_containers(self) -> list[str]:
        found = []
        for container, before in self.containers:
            if len(container) != len(before):
                changed = f"has {len(container)} after a call"
            elif any(self._is_state(old, new) for old, new in _pairs(before, container)):
                changed = "changes with every call"
            else:
                continue
            said = f"a {type(container).__name__} of {len(before)} things in the model"
            found.append(f"{said} {changed}: state kept between calls")
        return found

    def _changed_constants(self) -> list[str]:
        return [
            f"a tensor of shape {tuple(tensor.shape)} that the model made in its first call is written in every call"
            for tensor, version in self.constants
            if tensor._version != version and self.tape.node_of(tensor) is not None
        ]

    def _said(self, holder: Any) -> str:
        return self.names.get(id(holder)) or f"a {type(holder).__name__}"


def _pairs(before: Any, container: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(before, dict):
        return ((old, container[key]) for key, old in before.items() if key in container)
    return iter(()) if isinstance(container, set) else zip(before, container, strict=True)


def _plain_modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]


def _names(model: nn.Module) -> dict[int, str]:
    return {id(m): f"'{path}'" if path else "the model" for path, m in model.named_modules()}
