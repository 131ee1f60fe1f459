"""How many models that no one here wrote does `decouple` take, on which rung, and is each of them still itself?

    python -m benchmarks.zoo registry.py [--only 'hf/*'] [--limit 120] [--resume] [--out zoo.jsonl]

`registry.py` is any file that holds `REG`: a dict from names to dicts with "lib", "build" (a function that gives model,
arguments and keyword arguments) and "batchable" (whether another batch size makes sense).
Every model runs in a process of its own under a time limit: a crash or an endless loop costs one line. Each is cut
into three parts of equal cost, with oracles, checked, and then compared with itself: values bitwise, gradients, buffers
and random state in train mode; eval mode; other data, another batch size, another sequence length; a state dict there
and back; and two steps with heads that must move heads and weights. What `decouple` did to the model meanwhile is
compared as well. A model that is not reproducible under fixed seeds cannot be scored.
"""

import importlib.util
import multiprocessing
import sys
import time
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from . import rows, tables
from .rows import Row
from .zoo_case import SEED, Case


def load(path: Path) -> ModuleType:
    """The registry as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise click.BadParameter(f"{path} is no Python file")
    registry = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = registry  # models that are built in it may look for it
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(registry)
    if not isinstance(getattr(registry, "REG", None), dict):
        raise click.BadParameter(f"{path} holds no dict called REG")
    return registry


def scored(entry: dict[str, Any], limit: float) -> dict[str, Any]:
    """The row of one model, judged in a process of its own."""
    fork = multiprocessing.get_context("fork")  # what the registry imports is imported once
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(entry, theirs))
    started = time.perf_counter()
    process.start()
    theirs.close()
    try:
        row: dict[str, Any] = ours.recv() if ours.poll(limit) else {"status": "time out", "why": f"{limit:g} s"}
    except EOFError:
        process.join()
        row = {"status": "crashed", "why": f"exit code {process.exitcode}"}
    process.kill()
    process.join()
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def _child(entry: dict[str, Any], to: Connection) -> None:
    to.send(Case(entry["build"], entry.get("batchable", True)).run())
    to.close()


def summary(results: list[Row]) -> Table:
    """By library: how many are right, on which rung, refused, and the rest."""
    kinds = ("right", "refused", "unscored", "time out", "crashed", "error", "wrong")
    lines = []
    for library, own in _by_library(results):
        counts = [sum(row["status"] == kind for row in own) for kind in kinds]
        above = sum(row["status"] == "right" and row.get("rung") != "hooks" for row in own)
        seconds = sorted(row["seconds"] for row in own)[len(own) // 2]
        lines.append((library, len(own), *counts, above, f"{seconds:.1f}"))
    heads = ("library", "models", *kinds, "above the hooks", "median s")
    return tables.console("decouple into three parts, check, and compare", heads, lines)


def table(results: list[Row]) -> str:
    """By library, without the models that cannot be compared with themselves."""
    heads = ("library", "models", "right", "of these on hooks", "refused", "out of time or memory", "silently wrong")
    lines = []
    for library, own in _by_library([row for row in results if row["status"] != "unscored"]):
        right = [row for row in own if row["status"] == "right"]
        hooks = sum(row["rung"] == "hooks" for row in right)
        refused, wrong = (sum(row["status"] == status for row in own) for status in ("refused", "wrong"))
        late = sum(row["status"] in ("time out", "crashed") for row in own)
        lines.append((library, len(own), len(right), hooks, refused, late, wrong))
    return tables.markdown(heads, lines)


def _by_library(results: list[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each library in the order of their names, and then all."""
    libraries = [(name, own) for (name,), own in sorted(tables.groups(results, "lib").items())]
    return [*libraries, ("all", results)]


@click.command()
@click.argument("registry", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--only", multiple=True, help="Globs of names.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds a model may take.")
@click.option("--resume", is_flag=True, help="Keep the rows that the result file has.")
@click.option("--out", default="zoo.jsonl", show_default=True, type=click.Path(path_type=Path), help="The result file.")
def main(registry: Path, only: tuple[str, ...], limit: float, resume: bool, out: Path) -> None:
    """Put every model of a registry to the test."""
    torch.set_num_threads(1)
    console = Console()
    if not resume:
        rows.replace(out, [])
    done = {row["model"] for row in rows.read(out)}
    for name, entry in load(registry).REG.items():
        if name in done or (only and not any(fnmatchcase(name, glob) for glob in only)):
            continue
        row = {"model": name, "lib": entry.get("lib", "-"), "seed": SEED, **scored(entry, limit)}
        rows.put(out, row, ["model"])
        console.print(f"{name:44} {row['status']:9} {row.get('rung', ''):8} {row['seconds']:6.1f} s  {row['why']}")
    if measured := rows.read(out):
        console.print(summary(measured))


if __name__ == "__main__":
    main()
