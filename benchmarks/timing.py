"""Arms that take turns: every round runs each arm once, so that whatever the machine does hits all of them alike."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


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
    return [_timing(name, found, [s / b for s, b in zip(found, base, strict=True)]) for name, found in seconds.items()]


def _timing(name: str, seconds: list[float], ratios: list[float]) -> Timing:
    low, _, high = quantiles(seconds, n=4)
    ratio_low, _, ratio_high = quantiles(ratios, n=4)
    return Timing(name, median(seconds), low, high, median(ratios), ratio_low, ratio_high)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def report(title: str, rows: list[dict[str, Any]], name: str) -> None:
    """Print the rows as a table and keep them as JSON."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    console = Console(width=120)
    console.print(table)
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def as_row(timing: Timing) -> dict[str, Any]:
    """The timing for a table: milliseconds and ratios, with quartiles."""
    found = asdict(timing)
    return {
        "arm": timing.arm,
        "ms": 1000 * timing.seconds,
        "ms quartiles": f"{1000 * found['seconds_low']:.2f}-{1000 * found['seconds_high']:.2f}",
        "ratio": timing.ratio,
        "ratio quartiles": f"{timing.ratio_low:.2f}-{timing.ratio_high:.2f}",
    }
