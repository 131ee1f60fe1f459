"""Write the tables of the README from the results: `python -m benchmarks readme`."""

from collections.abc import Callable
from pathlib import Path

import click

from . import (
    asynchrony,
    bptt_memory,
    every_layer_cut,
    harm,
    memory,
    network_size,
    step_time,
    two_clocks,
    window_time,
    zoo,
)
from .recurrent import summary
from .rows import Row, read, results

README = Path(__file__).parent.parent / "README.md"
# The blocks of the README between marks: of which results, and what makes a table of their rows.
BLOCKS: dict[str, dict[str, Callable[[list[Row]], str]]] = {
    "costs": {"step_time": step_time.table, "memory": memory.table, "every_layer_cut": every_layer_cut.table},
    "harm": {"harm": harm.table},
    "zoo": {"zoo": zoo.table},
    "recurrent": {
        "recurrent_recall": summary.recall,
        "recurrent_copy": summary.copy,
        "recurrent_repeat": summary.repeat,
        "recurrent_characters": summary.characters,
        "recurrent_rows": summary.mnist_rows,
        "window_time": window_time.table,
        "bptt_memory": bptt_memory.table,
    },
    "networks": {"asynchrony": asynchrony.table, "two_clocks": two_clocks.table, "network_size": network_size.table},
}


def block(name: str) -> str:
    """All tables of a block whose results are there, as Markdown."""
    return "\n".join(table(rows) for file, table in BLOCKS[name].items() if (rows := read(results(file))))


def filled(text: str) -> str:
    """The README's text with its blocks made from the rows."""
    for name in BLOCKS:
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = before + begin + block(name) + end + rest.split(end)[1]
    return text


@click.command()
def main() -> None:
    """Replace what stands between the marks."""
    README.write_text(filled(README.read_text()))
