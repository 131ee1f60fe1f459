"""A network as text: a table of agents and a table of links."""

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..engine.description.agent import Agent
from ..engine.description.link import Link
from ..passes.plan.plan import UNKNOWN, WIDTH, amount, counted, some
from .overview import Overview

AGENTS = ("agent", "module", "fires", "learns", "parameters", "loss", "reads", "sends")
LINKS = ("from → to", "delay", "policy", "boundary", "head", "parameters", "synthetic")


def text(net: Overview) -> str:
    """The network as a table; the same network gives the same text in every terminal.

    Guarantees:
        No line is longer than 120 characters; "-" stands for what is not there or not known before the first tick.
    """
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(view(net))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip()


def view(net: Overview) -> RenderableType:
    """The network as a renderable of `rich`."""
    blocks: list[RenderableType] = [Text(headline(net)), Text(""), _grid(AGENTS, agent_rows(net))]
    if net.links:
        blocks += [Text(""), _grid(LINKS, link_rows(net))]
    return Group(*blocks)


def headline(net: Overview) -> str:
    """The numbers of agents and links, and the present tick."""
    return f"network: {counted(len(net.agents), 'agent')}, {counted(len(net.links), 'link')}, tick {net.ticks}"


def agent_rows(net: Overview) -> Iterable[tuple[str, ...]]:
    """One row per agent, under `AGENTS`."""
    reads: dict[str | None, list[str]] = {}
    sends: dict[str | None, list[str]] = {}
    for link in net.links:
        sends.setdefault(link.source.agent, []).append(link.source.name)
        for sink in link.sinks:
            reads.setdefault(sink.agent, []).append(sink.name)
    for name, agent in net.agents.items():
        yield (
            name,
            type(agent.module).__name__,
            str(agent.clock) if agent.present else "paused",
            "always" if agent.p_update >= 1 else f"p = {agent.p_update:g}",
            amount(sum(p.numel() for p in agent.module.parameters())),
            _loss(agent),
            some(reads.get(name, [])),
            some(list(dict.fromkeys(sends.get(name, [])))),
        )


def link_rows(net: Overview) -> Iterable[tuple[str, ...]]:
    """One row per link, under `LINKS`."""
    for number, link in enumerate(net.links):
        boundary = net.boundaries.get(link.name)
        yield (
            link.name,
            str(net.delays[number]),
            str(link.policy),
            boundary.kind if boundary is not None else _asked(link),
            (boundary.head_name if boundary is not None else None) or UNKNOWN,
            amount(boundary.head_parameters) if boundary is not None and boundary.head_name else UNKNOWN,
            "yes" if link.synthetic else UNKNOWN,
        )


def _loss(agent: Agent) -> str:
    if agent.loss is None or isinstance(agent.loss, str):
        return agent.loss or UNKNOWN
    return getattr(agent.loss, "__name__", type(agent.loss).__name__)


def _asked(link: Link) -> str:
    if link.outside or link.boundary is None:
        return "as it is"
    return link.boundary if isinstance(link.boundary, str) else UNKNOWN


def _grid(columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in columns:
        number = heading in ("delay", "parameters")
        table.add_column(Text(heading), justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
