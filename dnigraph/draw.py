"""Draw a decoupled model, a network, or a plan."""

import os

from .decoupled.module import DecoupledModule
from .network import Network
from .passes.draw import draw as draw_plan
from .passes.plan.plan import Plan


def draw(what: DecoupledModule | Network | Plan, path: str | os.PathLike[str]) -> None:
    """Write the drawing of a cut graph or a network; the suffix says how: .svg, .html, .png, .dot, .mmd or .json.

    Raises:
        DrawError: there is no such format, or it needs an extra.
    """
    draw_plan(what if isinstance(what, Plan) else what.plan, path)
