"""The plan of a cut: which parts there are, which values cross between them, and why. A frozen value of plain data."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from ..errors import PlanError
from . import table

FORMAT = 1


@dataclass(frozen=True)
class Part:
    """The nodes between cuts: one `GraphModule` of the decoupled model."""

    name: str  # part_0, part_1, ... in the order in which they run
    level: int  # the largest number of cut edges on a path from an input
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]  # names of the values it reads: model inputs and crossings' nodes
    outputs: tuple[str, ...]  # names of the values it hands on: crossings' nodes and model outputs
    parameters: int  # scalars in its parameters
    flops: int | None = None  # of one forward pass on the example; None where it was not measured


@dataclass(frozen=True)
class Crossing:
    """One value that flows from a part to later parts, with all its consumers."""

    name: str  # for people: the module path that made it where there is one
    node: str  # the graph node that makes it
    producer: str  # a part's name
    consumers: tuple[str, ...]  # parts' names, in running order
    shape: tuple[int, ...] | None = None  # as in the example, batch first; None: not a tensor, or no example
    dtype: str | None = None  # "float32"
    bytes: int = 0
    gradient: bool = False  # it carries a gradient, so a boundary stands on it
    asked: bool = True  # the user asked for this cut; False: it goes around the cuts and had to be cut too
    boundary: str | None = None  # "dni", "oracle", ...
    head: str | None = None  # a short description of the head
    head_parameters: int = 0  # scalars in the head


@dataclass(frozen=True)
class Plan:
    """What `decouple` did or would do. `print(plan)` is the table, `save` and `load` keep it as JSON."""

    model: str  # the class name of the model
    capture: str  # the rung of the capture ladder
    cuts: tuple[tuple[str, str], ...]  # the edges that were cut, as pairs of node names
    parts: tuple[Part, ...]
    crossings: tuple[Crossing, ...]
    inputs: tuple[str, ...] = ()  # the model's inputs, as graph nodes
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return table.text(self)

    def __rich__(self) -> RenderableType:
        return table.view(self)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Plan":
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the data is no plan, or of another format.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError([f"this is no plan of format {FORMAT}; write one with plan.save(path)"])
        fields = {key: _frozen(value) for key, value in data.items() if key != "format"}
        try:
            fields["parts"] = tuple(Part(**{k: _frozen(v) for k, v in part.items()}) for part in data["parts"])
            fields["crossings"] = tuple(Crossing(**{k: _frozen(v) for k, v in c.items()}) for c in data["crossings"])
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError([f"this is no whole plan of format {FORMAT}: {error}"]) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is no plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise PlanError([f"{path} is not JSON: {error}"]) from error
        return cls.from_json(data)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
