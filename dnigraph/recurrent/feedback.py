"""A model with feedback edges, named by the user, as a step module."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..passes.errors import nearest
from .recurrent_error import RecurrentError


class Feedback(nn.Module):
    """Closes edges from outputs of a model to its inputs, with a delay of one step (or of one window).

        x ──────► model ──► y                     feedback={"memory": "new_memory"}
        memory ─►   │
          ▲         └─────► new_memory ─┐
          └──────────────── delay ◄─────┘

    The model may be one that `decouple` cut: its own boundaries learn in the same backward pass.

    Raises:
        RecurrentError: the model has no such inputs or outputs; all of them are listed.
    """

    def __init__(self, model: nn.Module, feedback: Mapping[str, str | int]) -> None:
        super().__init__()
        self.model, self.feedback = model, dict(feedback)
        parameters = inspect.signature(getattr(model, "original", model).forward).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            self._refuse([k for k in self.feedback if k not in parameters], "input", list(parameters))

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        """x: one tensor, or a tuple or dict of the model's other inputs."""
        state = state or {}
        if isinstance(x, Mapping):
            output = self.model(**x, **state)
        else:
            output = self.model(*(x if isinstance(x, tuple) else (x,)), **state)
        return output, {name: self._pick(output, source) for name, source in self.feedback.items()}

    def _pick(self, output: Any, source: str | int) -> Any:
        if isinstance(source, int) and isinstance(output, tuple | list) and -len(output) <= source < len(output):
            return output[source]
        if isinstance(source, str) and isinstance(output, Mapping) and source in output:
            return output[source]
        if isinstance(source, str) and hasattr(output, source):
            return getattr(output, source)
        known = list(output) if isinstance(output, Mapping) else range(len(output)) if isinstance(output, tuple) else []
        self._refuse([str(source)], "output", [str(k) for k in known])
        raise AssertionError(source)

    def _refuse(self, strange: list[str], what: str, known: list[str]) -> None:
        if strange:
            there = f"there are {', '.join(known)}" if known else "it returns a single tensor"
            raise RecurrentError(
                [f"the model has no {what} {name!r}; {there}{nearest(name, known)}" for name in strange],
                "feedback maps names of inputs to names or positions of outputs: {'memory': 'new_memory'}",
            )


def fed_back(step: Any, feedback: Any) -> Any:
    """The step module; with feedback edges, around the model.

    Raises:
        RecurrentError: the edges are no dict, or name what is not there.
    """
    if feedback is not None and not isinstance(feedback, Mapping):
        way = "it maps names of inputs to names or positions of outputs: {'memory': 'new_memory'}"
        raise RecurrentError([f"feedback={feedback!r} is no dict"], way)
    return Feedback(step, feedback) if feedback and isinstance(step, nn.Module) else step
