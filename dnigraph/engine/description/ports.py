"""Names of a module's inputs and outputs."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

OUTPUT = "output"  # the name of a single unnamed output

_FREE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arguments of a module's forward method."""

    names: tuple[str, ...]
    optional: frozenset[str]  # those with a default
    open: bool  # it takes arguments of any other name too

    def takes(self, name: str) -> bool:
        """Whether there is such an argument."""
        return name in self.names or self.open


def inputs_of(module: nn.Module) -> Inputs:
    """The arguments that `module(...)` can be given by name."""
    inner = module._modules.get("_orig_mod") or module  # what torch.compile wraps
    parameters = inspect.signature(inner.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (*_FREE, inspect.Parameter.POSITIONAL_ONLY)]
    optional = frozenset(p.name for p in named if p.default is not inspect.Parameter.empty)
    return Inputs(
        tuple(p.name for p in named), optional, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    )


def outputs_of(returned: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    """What a module returned, by name.

        a dict                   its keys
        a dataclass, named tuple its fields
        a tuple or list          "0", "1", ...
        anything else            "output"

    Args:
        names: the names that the user gave, in order; they replace those of tuples and of single values.
    """
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    if isinstance(returned, tuple | list):
        known = names or getattr(returned, "_fields", None) or [str(i) for i in range(len(returned))]
        return dict(zip(known, returned, strict=False))
    return {(names or [OUTPUT])[0]: returned}
