"""Draw a decoupled model, a network, or a plan."""

import os

from torch import nn

from .decoupled.module import DecoupledModule
from .network import Network
from .passes.draw import DrawError
from .passes.draw import draw as draw_plan
from .passes.plan.plan import Plan


def draw(what: DecoupledModule | Network | Plan, path: str | os.PathLike[str]) -> None:
    """Write the drawing of a cut graph or a network; the suffix says how: .svg, .html, .png, .dot, .mmd or .json.

    Raises:
        DrawError: there is no such format, or it needs an extra.
    """
    plan = None if isinstance(what, type) else what if isinstance(what, Plan) else getattr(what, "plan", None)
    if not isinstance(plan, Plan):
        kind = what.__name__ if isinstance(what, type) else type(what).__name__
        way = ": draw dg.plan(model, cuts, x), or what dg.decouple returns" if isinstance(what, nn.Module) else ""
        raise DrawError(f"draw takes a decoupled model, a network or a plan, not {kind}{way}")
    draw_plan(plan, path)
