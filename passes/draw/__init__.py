"""From a plan to a picture: parts, the values that cross between them, and what stands on each crossing.

plan ─items─► what is shown ─rows─► boxes in rows ─wires─► lines between them ─columns─► places ─svg─► page ─html
                    └─text─► Graphviz, Mermaid, JSON
"""

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import DniGraphError, PlanError, nearest
from ..plan.plan import LONGEST, Plan
from .columns import place
from .html import html
from .items import net
from .svg import svg
from .text import dot, json_text, mermaid

__all__ = ["FORMATS", "DrawError", "draw", "rendered"]


class DrawError(DniGraphError, ValueError):
    """The drawing cannot be made. `known` lists the formats that exist."""

    def __init__(self, why: str):
        self.known = tuple(FORMATS)
        super().__init__(why)


def draw(plan: Plan, path: str | os.PathLike[str]) -> Path:
    """Write the drawing of `plan` to `path`, in the format that its suffix names; the path comes back.

    Guarantees:
        The same plan gives the same bytes.
        Nothing is fetched, neither now nor when the drawing is opened.
        A drawing that fails leaves the file as it was.

    Raises:
        DrawError: there is no such format, .png lacks its package, or the file cannot be written. Its folder is made.
        PlanError: the plan's crossings do not fit its parts. All misfits are listed.
    """
    try:
        path = Path(path)
    except TypeError as error:
        raise DrawError(f"the name of a drawing is text or a path, not {type(path).__name__}") from error
    drawing = rendered(plan, path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawing)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DrawError(f"{str(path)!r} cannot be written: {error}") from error
    return path


def rendered(plan: Plan, suffix: str) -> bytes:
    """The drawing of `plan` in the format of `suffix` (".svg"), as the bytes of a file.

    Raises:
        DrawError: there is no such format, or .png lacks its package.
        PlanError: the plan's crossings do not fit its parts. All misfits are listed.
    """
    write = FORMATS.get(suffix.lower())
    if write is None:
        asked = f"a drawing cannot be written as {suffix!r}" if suffix else "the name of a drawing needs a suffix"
        raise DrawError(f"{asked}; formats: {', '.join(FORMATS)}{nearest(suffix, FORMATS)}")
    names = [*(name for part in plan.parts for name in part.nodes), *(crossing.name for crossing in plan.crossings)]
    if (longest := max(map(len, names), default=0)) > LONGEST:
        raise PlanError([f"a name has {longest} letters; names of up to {LONGEST} are drawn"])
    return write(plan)


def _svg(plan: Plan) -> bytes:
    return svg(place(net(plan))).encode()


def _html(plan: Plan) -> bytes:
    return html(plan, svg(place(net(plan)))).encode()


def _json(plan: Plan) -> bytes:
    return json_text(plan, place(net(plan))).encode()


def _dot(plan: Plan) -> bytes:
    return dot(net(plan)).encode()


def _mermaid(plan: Plan) -> bytes:
    return mermaid(net(plan)).encode()


def _png(plan: Plan) -> bytes:
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: the package is there, the cairo library is not
        why = f"a .png needs cairosvg ({error}): pip install dnigraph[png]; .svg and .html need nothing"
        raise DrawError(why) from error
    return bytes(cairosvg.svg2png(bytestring=_svg(plan), scale=2))


FORMATS: dict[str, Callable[[Plan], bytes]] = {
    ".svg": _svg,
    ".html": _html,
    ".png": _png,
    ".dot": _dot,
    ".mmd": _mermaid,
    ".json": _json,
}
