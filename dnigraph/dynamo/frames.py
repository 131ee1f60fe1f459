"""Read off the Python stack what Dynamo does not tell its backends: whose graph runs, and where it was captured."""

import sys
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

from torch import nn

_BETWEEN = ("torch._dynamo.", __name__.rpartition(".")[0])  # modules between a compiled function and its graph
_CALL = nn.Module._wrapped_call_impl.__code__  # through which each call of a module goes


def place() -> str:
    """Where the running graph was captured: file, line and name of the function, the same in each recompilation."""
    frame = next(f for f in _frames() if not str(f.f_globals.get("__name__")).startswith(_BETWEEN))
    code = frame.f_code
    return f"{code.co_filename}:{code.co_firstlineno}:{code.co_name}"


def call_of(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of the innermost running call of a compiled model; None: it is called in another way."""
    for frame in _frames():
        if frame.f_code is _CALL and plain(frame.f_locals.get("self")) is model:
            return frame.f_locals["args"], frame.f_locals["kwargs"]
    return None


def compiled_model(tensors: Collection[int]) -> nn.Module | None:
    """The model that was compiled and runs now: the innermost one that has one of these tensors, by their ids.

    If none has one of them (other tensors are used in place of its own), the innermost. None: `torch.compile` was
    called on a function.
    """
    # Reading the locals of a frame keeps them alive as long as the frame runs, so only frames of module calls are read.
    calls = (frame for frame in _frames() if frame.f_code is _CALL)
    models: list[nn.Module] = [plain(m) for frame in calls if _is_compiled(m := frame.f_locals.get("self"))]
    return next((model for model in models if owns(model, tensors)), models[0] if models else None)


def owns(model: nn.Module, tensors: Collection[int]) -> bool:
    """Whether one of these tensors, by their ids, belongs to a model."""
    return any(id(t) in tensors for t in (*model.parameters(), *model.buffers()))


def plain(model: Any) -> Any:
    """The module that `torch.compile` was given."""
    return model._orig_mod if isinstance(model, nn.Module) and "_orig_mod" in model._modules else model


def _is_compiled(module: Any) -> bool:
    """Whether it was made by `torch.compile(model)`, or compiled in place by `model.compile()`."""
    return isinstance(module, nn.Module) and (
        "_orig_mod" in vars(module).get("_modules", ()) or getattr(module, "_compiled_call_impl", None) is not None
    )


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
