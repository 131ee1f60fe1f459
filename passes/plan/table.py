"""A plan as text: the parts, what crosses between them, and what it costs. Laid out by `rich`, without colour codes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .plan import Crossing, Part, Plan

WIDTH = 120
UNKNOWN = "-"

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
        blocks += [Text(""), _grid(PART_COLUMNS, part_rows(plan))]
    if plan.crossings:
        blocks += [Text(""), _grid(CROSSING_COLUMNS, crossing_rows(plan))]
    if plan.notes:
        blocks += [Text(""), _bulleted(plan.notes)]
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


def amount(number: int) -> str:
    """A count for people: 812, 12.3 k, 1.5 M."""
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def amount_of_flops(flops: int | None) -> str:
    """FLOPs for people: 812 FLOP, 12.3 MFLOP."""
    if flops is None:
        return UNKNOWN
    return _scaled(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def amount_of_bytes(crossing: Crossing) -> str:
    """The bytes of what crosses, for people: 812 bytes, 1.5 KiB."""
    if not crossing.bytes:
        return UNKNOWN if crossing.shape is None else "0 bytes"
    return _scaled(crossing.bytes, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"))


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


def _parameters(plan: Plan) -> int:
    return sum(part.parameters for part in plan.parts)


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    """The number in the largest unit that keeps it at 1 or more, as it reads after rounding: 1024 KiB is 1.0 MiB."""
    if number < base:
        return f"{number} {units[0]}".rstrip()
    size, unit = float(number), 0
    while round(size, 1) >= base and unit < len(units) - 1:
        size, unit = size / base, unit + 1
    return f"{size:.1f} {units[unit]}"


def _grid(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading, kind in columns:
        justify: Literal["left", "right"] = "right" if kind == "number" else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=kind != "words", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _bulleted(notes: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 1))
    for note in notes:
        table.add_row(Text("*"), Text(note))
    return table
