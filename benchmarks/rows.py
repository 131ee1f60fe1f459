"""Results: JSON Lines, one row a line, and each row says where it comes from.

A row holds its key (arm, seed, ...), what was measured, and its origin: the commit whose code ran, date, torch, Python,
processor and threads. Many runs may write to one file; none changes the rows of another.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
DIGITS = 5  # significant ones: tables print at most four, and measurements are less certain than that


def results(name: str) -> Path:
    """The file of a benchmark's rows."""
    return RESULTS / f"{name}.jsonl"


def read(file: Path) -> list[Row]:
    """All rows of a file, in its order; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def replace(file: Path, rows: Iterable[Row]) -> None:
    """Write the rows of a new measurement in place of all rows of the file."""
    _write(file, [stamped(row) for row in rows])


def put(file: Path, row: Row, key: Iterable[str]) -> None:
    """Write one row in place of the row with the same values under the names in `key`; else append it."""
    names, rows = tuple(key), read(file)
    places = [i for i, other in enumerate(rows) if all(other.get(name) == row[name] for name in names)]
    place = places[0] if places else len(rows)
    rows[place : place + 1] = [stamped(row)]
    _write(file, rows)


def stamped(row: Row) -> Row:
    """The row with shortened numbers, followed by its origin."""
    origin = {
        "commit": COMMIT,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "origin": "measured",
    }
    return {**rounded(row, DIGITS), **origin}


def rounded(value: Any, digits: int) -> Any:
    """Plain data with all floats cut to so many significant digits; not a number and infinity become null."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: rounded(part, digits) for name, part in value.items()}
    return [rounded(part, digits) for part in value] if isinstance(value, list | tuple) else value


def save(file: Path, content: bytes) -> None:
    """Write a file at once: a process that is stopped leaves the old content or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, file)


def _write(file: Path, rows: list[Row]) -> None:
    save(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _processor() -> str:
    """The name that Linux gives, elsewhere the architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the checkout, with a `+` where files of the library or of a benchmark differ from it."""
    here = Path(__file__).parent.parent
    ours = ("dnigraph", "passes", "benchmarks", ":!benchmarks/results")
    try:
        head = _git(here, "rev-parse", "--short=8", "HEAD")
        return head + "+" * bool(_git(here, "status", "--porcelain", "--", *ours))
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without history
        return None


def _git(folder: Path, *words: str) -> str:
    result = subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


COMMIT = _commit()  # read once at the start, since the checkout may change during a run of hours
