"""Numbers as people read them: 12.3 k, 1.5 KiB, 71.4 %; and the tables that hold them."""

from collections.abc import Iterator, Sequence
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

WIDTH = 120  # characters of a line
UNKNOWN = "-"  # what nobody measured


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
