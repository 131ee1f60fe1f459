"""What the commands say of a model: what can be cut, the plan, its drawing, the check."""

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..boundaries.choices import UnconditionedWarning
from ..decouple import decouple, places
from ..decouple import plan as make_plan
from ..draw import draw as draw_plan
from ..heads.conditions import Condition, embedded, one_hot
from ..passes.cuts.places import ARROW
from ..passes.cuts.specs import Cut, Cuts
from ..passes.plan.plan import WIDTH, Plan
from ..proof.check import CheckError
from ..proof.check import check as run_check
from .examples import with_example
from .model_specs import Loaded, load

CONDITIONS = {"one_hot": (one_hot, 1), "embedded": (embedded, 2)}  # and how many numbers follow


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    spec: str
    inputs: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    parts: int | None = None
    boundary: str | None = None
    condition: str | None = None
    capture: str = "auto"

    def load(self) -> Loaded:
        """The model and an example call."""
        return with_example(load(self.spec), self.inputs)

    def loaded_for_training(self) -> Loaded:
        """The model; with an example call where it brings no data of its own."""
        loaded = load(self.spec)
        return loaded if "data" in loaded.extras and not self.inputs else with_example(loaded, self.inputs)

    def where(self) -> Cuts:
        """The cuts; without any, the marks that the model carries."""
        cuts: list[Cut] = [edge(cut) if ARROW in cut else cut for cut in self.cuts]
        return [*cuts, *([] if self.parts is None else [self.parts])] or None


def edge(text: str) -> tuple[str, str]:
    """The edge that `a->b` stands for."""
    a, _, b = text.partition(ARROW)
    return a.strip(), b.strip()


def inspect(request: Request, nodes: bool, as_json: bool) -> None:
    """Print what can be cut."""
    loaded = request.load()
    found = places(loaded.model, loaded.args, loaded.kwargs, capture=request.capture)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        _console().print(found.view(nodes))


def plan(request: Request, as_json: bool) -> None:
    """Print the plan."""
    made = _planned(request)
    click.echo(json.dumps(made.to_json(), indent=1) if as_json else str(made))


def draw(request: Request, out: Path) -> None:
    """Draw the plan into a file."""
    made = _planned(request)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_plan(made, out)
    click.echo(f"{made.model} in {len(made.parts)} parts is drawn in {out}")


def check(request: Request, as_json: bool) -> bool:
    """Print what the check found; whether all was right."""
    loaded = request.load()
    try:
        with _unconditioned():
            dm = decouple(
                loaded.model, request.where(), loaded.args, loaded.kwargs,
                boundary=request.boundary or "auto", condition=condition(request.condition), capture=request.capture,
            )  # fmt: skip
        report = run_check(dm, *(loaded.args or ()), **(loaded.kwargs or {}))
    except CheckError as error:
        report = error.report
    found = {"model": report.model, "right": report.right, "findings": list(map(dataclasses.asdict, report.findings))}
    click.echo(json.dumps(found, indent=1) if as_json else str(report))
    return report.right


def _planned(request: Request) -> Plan:
    """The plan; with boundaries and heads in it where one of them was asked for."""
    loaded = request.load()
    if request.boundary is None and request.condition is None:
        return make_plan(loaded.model, request.where(), loaded.args, loaded.kwargs, capture=request.capture)
    with _unconditioned():
        dm = decouple(
            loaded.model, request.where(), loaded.args, loaded.kwargs, capture=request.capture, check=False,
            boundary=request.boundary or "auto", condition=condition(request.condition),
        )  # fmt: skip
    return dm.plan


def condition(text: str | None) -> Condition | None:
    """What `one_hot:10` or `embedded:1000:16` stands for.

    Raises:
        BadParameter: it stands for nothing.
    """
    if text is None:
        return None
    name, *numbers = text.split(":")
    make, count = CONDITIONS.get(name, (None, 0))
    if make is None or len(numbers) != count or not all(number.isdecimal() for number in numbers):
        words = f"{text!r} is no condition; say one_hot:CLASSES or embedded:VOCABULARY:WIDTH"
        raise click.BadParameter(words, param_hint="--condition")
    made: Any = make(*map(int, numbers))  # type: ignore[operator]  # each has its own number of arguments
    return made  # type: ignore[no-any-return]


@contextmanager
def _unconditioned() -> Iterator[None]:
    """Nothing is trained here, so heads without a label are no danger."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconditionedWarning)
        yield


def _console() -> Console:
    console = Console(soft_wrap=False)
    console.width = max(console.width, WIDTH)  # names of nodes and modules are long, also where there is no terminal
    return console
