"""What is added to the error of an agent that failed: where it was, and what it had read."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .inbox import Reading


def failure_notes(
    tick: int, readings: Sequence[Reading], agent: str, inputs: Mapping[str, Any], windows: bool
) -> list[str]:
    """The notes for an error in a firing.

    Args:
        readings: what it had read.
        inputs: of the network, those that the agent was given.
        windows: whether the agent takes windows, whose first dimension need not be the batch.
    """
    notes = [f"in agent {agent!r}, tick {tick}{_listed(readings)}"]
    sizes = {} if windows else _batch_sizes(readings, inputs)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} ({name})" for name, size in sizes.items())
        notes.append(
            f"its inputs are of different sizes: {listed}. If that is the batch: keep it as large as it is while "
            "messages of it are on their way (drop_last=True), or end the episode before another size, "
            "tick(..., ends=True)"
        )
    return notes


def _listed(readings: Sequence[Reading]) -> str:
    parts = [
        f"{reading.inbox.sink.name} {list(reading.leaf.shape)} from {reading.inbox.link.source}"
        + (f", sent {reading.stale} ticks before" if reading.stale else "")
        for reading in readings
        if isinstance(reading.leaf, Tensor)
    ]
    return f"; it read {'; '.join(parts)}" if parts else ""


def _batch_sizes(readings: Sequence[Reading], inputs: Mapping[str, Any]) -> dict[str, int]:
    """The first dimension of every tensor that the agent was given, by what it is."""
    values = dict(inputs)
    for reading in readings:
        inbox = reading.inbox
        if reading.entries or not isinstance(inbox.initial, Tensor):
            stale = f", sent {reading.stale} ticks before" if reading.stale else ""
            values[f"{inbox.sink.name} from {inbox.link.source}{stale}"] = reading.leaf
    return {name: len(v) for name, v in values.items() if isinstance(v, Tensor) and v.dim()}
