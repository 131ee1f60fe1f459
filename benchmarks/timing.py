"""Arms that take turns: every round runs each arm once, so that whatever the machine does hits all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from rich.console import Console

from . import rows, tables
from .rows import Row


@dataclass(frozen=True)
class Timing:
    """Seconds of one arm, and its ratio to the first arm in the same round."""

    arm: str
    seconds: float  # median
    seconds_low: float  # quartiles
    seconds_high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def alternate(arms: Mapping[str, Callable[[], Any]], rounds: int, repeats: int = 1, warm_up: int = 3) -> list[Timing]:
    """Time the arms in turns. Ratios are taken round by round and against the first arm."""
    for _ in range(warm_up):
        for arm in arms.values():
            arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            for _ in range(repeats):
                arm()
            seconds[name].append((time.perf_counter() - started) / repeats)
    base = seconds[next(iter(arms))]
    return [_timing(name, own, [s / b for s, b in zip(own, base, strict=True)]) for name, own in seconds.items()]


def _timing(name: str, seconds: list[float], ratios: list[float]) -> Timing:
    low, _, high = quantiles(seconds, n=4)
    ratio_low, _, ratio_high = quantiles(ratios, n=4)
    return Timing(name, median(seconds), low, high, median(ratios), ratio_low, ratio_high)


def report(title: str, name: str, measured: list[Row], seed: int) -> None:
    """Print the rows as a table, and write them as the results of a benchmark; `seed`: that of all of them."""
    lines = [list(row.values()) for row in measured]
    Console(width=120).print(tables.console(title, list(measured[0]), lines))
    file = rows.results(name)
    rows.replace(file, [{**row, "seed": seed} for row in measured])
    print(f"-> {file}")


def as_row(timing: Timing) -> Row:
    """The timing for a table: milliseconds and ratios, with quartiles."""
    return {
        "arm": timing.arm,
        "ms": 1000 * timing.seconds,
        "ms quartiles": f"{1000 * timing.seconds_low:.2f}-{1000 * timing.seconds_high:.2f}",
        "ratio": timing.ratio,
        "ratio quartiles": f"{timing.ratio_low:.2f}-{timing.ratio_high:.2f}",
    }
