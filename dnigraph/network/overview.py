"""A network as plain values: what its table, its drawing and its checkpoint look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..boundaries import Boundary
from ..engine.description.agent import Agent
from ..engine.description.link import Link


@dataclass(frozen=True)
class Overview:
    """What the user wired, and what has been made of it so far."""

    agents: Mapping[str, Agent]
    links: Sequence[Link]
    delays: Sequence[int]  # of each link, in ticks
    boundaries: Mapping[str, Boundary]  # by their links' names; empty before the first tick
    order: Sequence[str]  # the agents, so that a reader without delay comes after its sender
    inputs: Sequence[str]  # the names of what a tick is given
    ticks: int
