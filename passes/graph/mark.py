"""The mark that a model's author leaves: `x = dg.cut(x, name="mid")`, the identity anywhere but in a capture."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

T = TypeVar("T")


def cut(value: T, name: str | None = None) -> T:
    """The value itself. A capture writes the call down: `decouple(model, name)` or `decouple(model, dg.cut)` cuts here.

    A tuple, list or dict is marked tensor by tensor.
    """
    if isinstance(value, tuple | list):
        items: Any = (cut(item, name) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return type(value)((key, cut(item, name)) for key, item in value.items())
    if has_torch_function_unary(value) and not isinstance(value, int | float | str):
        function: Any = cut
        marked: T = handle_torch_function(function, (value,), value, name=name)
        return marked
    if torch.compiler.is_dynamo_compiling() and isinstance(value, torch.Tensor):
        return traced_mark(value, name)  # type: ignore[return-value]  # the very tensor
    return value


def traced_mark(value: torch.Tensor, name: str | None) -> torch.Tensor:
    """A mark as Dynamo meets it: a node of its graph for the backend of this library, nothing for others."""
    return value


def mark_name(node: fx.Node) -> str | None:
    """The name that a mark was given; `None`: it has none, or the node is no mark."""
    name = node.kwargs.get("name") if node.target is cut else None
    return name if isinstance(name, str) else None


class MarkListener(TorchFunctionMode):
    """Hears the marks that a model passes inside the block: `heard(value, name)` returns what goes on in its place."""

    def __init__(self, heard: Callable[[Any, str | None], Any]):
        super().__init__()
        self.heard = heard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, or hand the mark over."""
        return self.heard(args[0], kwargs["name"]) if func is cut else func(*args, **(kwargs or {}))
