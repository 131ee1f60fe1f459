"""The plan of a cut: which parts there are, which values cross between them, and why. A frozen value that prints."""

import dataclasses
import io
import itertools
import json
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import PlanError

FORMAT = 1
AROUND, LEAK, DATA, UNHEEDED = "around", "leak", "data", "unheeded"  # kinds of notes
WIDTH = 120  # characters of a line
LARGEST = 64 * 2**20  # bytes of a plan's file
LONGEST = 10_000  # letters of a name in it
UNKNOWN = "-"  # what nobody measured


class Note(str):
    """A sentence for the user. Programs ask for its kind and for the crossing that it is about, not for its words."""

    kind: str | None
    crossing: str | None

    def __new__(cls, text: str, kind: str | None = None, crossing: str | None = None) -> "Note":
        """The sentence, which compares, prints and saves as the plain string does."""
        note = super().__new__(cls, text)
        note.kind, note.crossing = kind, crossing
        return note


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

    def notes_of(self, kind: str) -> tuple[Note, ...]:
        """The notes of one kind. A plan that was loaded has their words only."""
        return tuple(note for note in self.notes if isinstance(note, Note) and note.kind == kind)

    def __str__(self) -> str:
        return text(self)

    def __rich__(self) -> RenderableType:
        return view(self)

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
        if misfits := _misfits(data):
            raise PlanError([f"this is no whole plan of format {FORMAT}: {misfit}" for misfit in misfits])
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
            if (size := Path(path).stat().st_size) > LARGEST:  # `Path`: a number is no file here
                raise PlanError([f"{path} has {size} bytes; a plan has up to {LARGEST}"])
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except PlanError:
            raise
        except (OSError, TypeError) as error:
            raise PlanError([f"{path!r} cannot be read: {error}"]) from error
        except (ValueError, RecursionError) as error:
            raise PlanError([f"{path} is not JSON: {error}"]) from error
        return cls.from_json(data)


def _misfits(data: Mapping[str, Any]) -> list[str]:
    """What of plain data is not of the kind that a plan has in its place; the first few of it."""
    return list(itertools.islice(_strange(data, Plan, "the plan"), 5))


def _strange(value: Any, kind: Any, where: str) -> Iterator[str]:
    """Where plain data is of another kind than a type says."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, Mapping):
            yield f"{where} is {_spelled(value)}"
            return
        yield from (f"{where} has an unknown {name!r}" for name in value if name not in hints and name != "format")
        for field in dataclasses.fields(kind):
            if field.name in value:
                yield from _strange(value[field.name], hints[field.name], f"{where}'s {field.name}")
            elif field.default is dataclasses.MISSING:
                yield f"{where} lacks {field.name!r}"
        return
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list | tuple) or (kinds[-1] is not ... and len(value) != len(kinds)):
            yield f"{where} is {_spelled(value)}"
            return
        for i, item in enumerate(value):
            yield from _strange(item, kinds[0] if kinds[-1] is ... else kinds[i], f"{where}[{i}]")
        return
    allowed = typing.get_args(kind) or (kind,)
    if any(typing.get_origin(one) is tuple for one in allowed):
        if value is not None:
            yield from _strange(value, allowed[0], where)
    elif type(value) not in (*allowed, *((Note,) if str in allowed else ())):
        yield f"{where} is {_spelled(value)}"
    elif type(value) is int and not 0 <= value < 2**63:
        yield f"{where} is a number of another size"
    elif isinstance(value, str) and len(value) > LONGEST:
        yield f"{where} has {len(value)} letters"


def _spelled(value: Any) -> str:
    text = repr(value) if isinstance(value, float | str | bool | None) else f"a {type(value).__name__}"
    return text if len(text) < 60 else f"{text[:40]}..."


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


# A column's heading, and what it holds: words (may break), facts (never broken) or numbers (and to the right).
PART_COLUMNS = (
    ("part", "words"),
    ("holds", "words"),
    ("parameters", "number"),
    ("share", "number"),
    ("forward", "number"),
    ("reads", "words"),
    ("hands on", "words"),
)
CROSSING_COLUMNS = (
    ("crossing", "words"),
    ("from → to", "words"),
    ("value", "fact"),
    ("size", "number"),
    ("boundary", "words"),
    ("head", "words"),
    ("parameters", "number"),
    ("of its part", "number"),
)


def text(plan: Plan) -> str:
    """The plan as the table a user wants; the same plan gives the same text in every terminal.

        Chain: 2 parts, cut at 1 edge (capture: record)
        28 parameters, 640 FLOP forward, 40 parameters in heads

        part    holds            parameters   share   forward  reads  hands on
        ───────────────────────────────────────────────────────────────────────
        part_0  fc1 .. relu (2)          20  71.4 %  480 FLOP  x      relu
        part_1  fc2                       8  28.6 %  160 FLOP  relu   fc2

        crossing  from → to        value              size  boundary  head    parameters  of its part
        ──────────────────────────────────────────────────────────────────────────────────────────────
        relu      part_0 → part_1  float32[5,4]   80 bytes  dni       linear          40      200.0 %

    No line of a table is longer than 120 characters, none ends in a blank, and "-" is what nobody measured.
    FLOPs are those of one forward pass on the example, as torch counts them: a multiply-add is two.
    """
    file = io.StringIO()
    # All said outright, so that COLUMNS, FORCE_COLOR and their like in the environment do not change the text.
    console = Console(file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(view(plan))
    lines = (line.rstrip() for line in file.getvalue().splitlines())
    return "\n".join(lines).rstrip()


def view(plan: Plan) -> RenderableType:
    """The plan as something that `rich` prints."""
    blocks: list[RenderableType] = [Text(headline(plan)), Text(costs(plan))]
    if plan.parts:
        blocks += [Text(""), grid(PART_COLUMNS, part_rows(plan))]
    if plan.crossings:
        blocks += [Text(""), grid(CROSSING_COLUMNS, crossing_rows(plan))]
    if plan.notes:
        blocks += [Text(""), bulleted(plan.notes)]
    return Group(*blocks)


def headline(plan: Plan) -> str:
    """What was cut, into how many parts, and how it was captured."""
    cut = f"cut at {counted(len(plan.cuts), 'edge')}" if plan.cuts else "not cut"
    return f"{plan.model}: {counted(len(plan.parts), 'part')}, {cut} (capture: {plan.capture})"


def costs(plan: Plan) -> str:
    """What the model holds and computes, and what its heads add."""
    flops = [part.flops for part in plan.parts if part.flops is not None]
    facts = [f"{amount(_parameters(plan))} parameters"]
    if flops and len(flops) == len(plan.parts):
        facts.append(f"{amount_of_flops(sum(flops))} forward")
    if any(crossing.head for crossing in plan.crossings):
        facts.append(f"{amount(sum(crossing.head_parameters for crossing in plan.crossings))} parameters in heads")
    return ", ".join(facts)


def part_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """One row per part, under `PART_COLUMNS`."""
    for part in plan.parts:
        yield (
            part.name,
            holds(part),
            amount(part.parameters),
            percent(part.parameters, _parameters(plan)),
            amount_of_flops(part.flops),
            some(part.inputs, most=2),
            some(part.outputs, most=2),
        )


def crossing_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """One row per crossing, under `CROSSING_COLUMNS`."""
    parameters = {part.name: part.parameters for part in plan.parts}
    for crossing in plan.crossings:
        yield (
            crossing.name,
            f"{crossing.producer} → {some(crossing.consumers)}",
            value(crossing),
            amount_of_bytes(crossing),
            stands(crossing),
            crossing.head or UNKNOWN,
            amount(crossing.head_parameters) if crossing.head else UNKNOWN,
            percent(crossing.head_parameters, parameters.get(crossing.producer, 0)) if crossing.head else UNKNOWN,
        )


def holds(part: Part) -> str:
    """The first and the last node of a part: "conv1 .. relu (7)"."""
    if len(part.nodes) < 2:
        return "".join(part.nodes) or UNKNOWN
    return f"{part.nodes[0]} .. {part.nodes[-1]} ({len(part.nodes)})"


def value(crossing: Crossing) -> str:
    """The type and shape of what crosses: "float32[8,64]"; a scalar is "float32[]"."""
    shape = "" if crossing.shape is None else f"[{','.join(map(str, crossing.shape))}]"
    return f"{crossing.dtype or ''}{shape}" or UNKNOWN


def stands(crossing: Crossing) -> str:
    """What stands on a crossing: its boundary, or that it crosses "as it is"; and whether nobody asked for it."""
    what = crossing.boundary if crossing.gradient else "as it is"
    return ", ".join(filter(None, (what, None if crossing.asked else "goes around"))) or UNKNOWN


def amount_of_bytes(crossing: Crossing) -> str:
    """The bytes of what crosses, for people: 812 bytes, 1.5 KiB."""
    if not crossing.bytes:
        return UNKNOWN if crossing.shape is None else "0 bytes"
    return scaled(crossing.bytes, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _parameters(plan: Plan) -> int:
    return sum(part.parameters for part in plan.parts)


def amount(number: int) -> str:
    """A count for people: 812, 12.3 k, 1.5 M."""
    return scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def amount_of_flops(flops: int | None) -> str:
    """FLOPs for people: 812 FLOP, 12.3 MFLOP."""
    if flops is None:
        return UNKNOWN
    return scaled(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def percent(some_of: int, whole: int) -> str:
    """A share for people: 12.3 %."""
    return f"{100 * some_of / whole:.1f} %" if whole else UNKNOWN


def counted(number: int, what: str) -> str:
    """A number of things: "1 part", "2 parts"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are: "a, b, c +4"."""
    more = f" +{len(names) - most}" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or UNKNOWN


def scaled(number: int, base: int, units: Sequence[str]) -> str:
    """The number in the largest unit that keeps it at 1 or more, as it reads after rounding: 1024 KiB is 1.0 MiB."""
    if number < base:
        return f"{number} {units[0]}".rstrip()
    size, unit = float(number), 0
    while round(size, 1) >= base and unit < len(units) - 1:
        size, unit = size / base, unit + 1
    return f"{size:.1f} {units[unit]}"


def grid(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[str, ...]]) -> Table:
    """A table of these columns, each a heading and what it holds, "words", "fact" or "number"."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading, kind in columns:
        justify: Literal["left", "right"] = "right" if kind == "number" else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=kind != "words", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def bulleted(notes: Sequence[str]) -> Table:
    """Lines behind stars."""
    table = Table.grid(padding=(0, 1))
    for note in notes:
        table.add_row(Text("*"), Text(note))
    return table
