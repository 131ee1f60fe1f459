"""The mark that a model's author leaves: `x = dg.cut(x, name="mid")`, the identity anywhere but in a capture."""

from typing import Any, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

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
