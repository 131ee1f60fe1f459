"""The drawing and the tables as one page that needs nothing from the network."""

from collections.abc import Iterable, Iterator, Sequence

from ..plan.plan import CROSSING_COLUMNS, PART_COLUMNS, Plan, crossing_rows, headline, part_rows
from .svg import escaped

_STYLE = """
body { font: 14px/1.45 Inter, "Helvetica Neue", Arial, sans-serif; color: #1e293b; background: #fbfcfe; margin: 24px }
.drawing { overflow: auto }
h2 { font-size: 16px; margin: 28px 0 8px }
table { border-collapse: collapse; background: #ffffff }
th, td { padding: 5px 12px; text-align: left; border-bottom: 1px solid #e2e8f0; vertical-align: top }
th { color: #64748b; font-weight: 600; border-bottom-color: #94a3b8 }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.fact { white-space: nowrap }
"""


def html(plan: Plan, drawing: str) -> str:
    """One HTML file: the drawing, the parts, the crossings and the notes."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"/><title>{escaped(headline(plan))}</title><style>{_STYLE}</style></head>',
        f'<body><div class="drawing">{drawing}</div>',
        *_grid("Parts", PART_COLUMNS, part_rows(plan)),
    ]
    if plan.crossings:
        lines += _grid("Crossings", CROSSING_COLUMNS, crossing_rows(plan))
    if plan.notes:
        lines += ["<h2>Notes</h2><ul>", *(f"<li>{escaped(note)}</li>" for note in plan.notes), "</ul>"]
    return "\n".join([*lines, "</body></html>", ""])


def _grid(heading: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    kinds = [kind for _, kind in columns]
    yield f"<h2>{heading}</h2><table>"
    yield _row("th", kinds, [words for words, _ in columns])
    for row in rows:
        yield _row("td", kinds, row)
    yield "</table>"


def _row(tag: str, kinds: Sequence[str], cells: Sequence[str]) -> str:
    inner = "".join(f'<{tag} class="{kind}">{escaped(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{inner}</tr>"
