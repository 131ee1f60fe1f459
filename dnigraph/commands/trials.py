"""The command that trains: a model beside itself in all ways of learning, on its own data or on random numbers."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bench.batches import Batch, as_batch
from ..bench.bench import adam
from ..bench.bench import bench as run_bench
from ..heads.conditions import Condition
from ..passes.errors import DniGraphError
from ..passes.graph.pytrees import map_tensors
from .looks import Request, condition

RANDOM = 4  # batches of random numbers


@dataclass(frozen=True)
class Trial:
    """What was asked for, beside the model and its cuts."""

    boundaries: tuple[str, ...]
    steps: int
    seconds: float
    folder: Path | None
    out: Path | None
    as_json: bool


def bench(trial: Trial, asked: Mapping[str, Any]) -> None:
    """Train, and print the table and what it says."""
    chosen = condition(asked["condition"])
    request = Request(**asked)
    loaded = request.loaded_for_training()
    extras = dict(loaded.extras)
    real = "data" in extras
    if real and "loss" not in extras:
        raise click.UsageError(
            'the callable gives "data" and no "loss": add a function of (output, target) to its dict'
        )
    if not real:
        extras["data"], loss = random_batches(loaded.model, loaded.args or (), loaded.kwargs or {}, chosen)
        extras.setdefault("loss", loss)
    report = run_bench(
        loaded.model, request.where(), extras["data"], loss=extras["loss"], optimizer=extras.get("optimizer", adam),
        condition=chosen, boundaries=trial.boundaries or None, test=extras.get("test", ()), steps=trial.steps,
        seconds=trial.seconds, folder=trial.folder, progress=not trial.as_json, real=real, capture=request.capture,
    )  # fmt: skip
    if trial.out is not None:
        report.save(trial.out)
    click.echo(json.dumps(report.rows, indent=1) if trial.as_json else str(report))


def random_batches(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any], chosen: Condition | None
) -> tuple[list[Batch], Callable[[Any, Any], Tensor]]:
    """Batches like an example call, with random numbers for floats, and a loss that fits what the model returns.

    Raises:
        DniGraphError: the model returns no tensor, or one in which the classes are no dimension.
    """
    trial = copy.deepcopy(model).eval()
    with torch.no_grad():
        output = trial(*args, **kwargs)
    way = 'let the callable return a dict with "model", "data" and "loss"'
    if not isinstance(output, Tensor):
        raise DniGraphError(f"there is no data, and the model returns a {type(output).__name__}, not a tensor: {way}")
    classes = None if chosen is None else chosen.labels
    loss: Callable[[Any, Any], Tensor] = F.mse_loss
    shape: tuple[int, ...] = tuple(output.shape)
    if classes is not None:
        if output.shape[-1] == classes:
            shape, loss = shape[:-1], _over_the_last
        elif output.ndim > 2 and output.shape[1] == classes:
            shape, loss = (shape[0], *shape[2:]), F.cross_entropy
        else:
            words = f"the model returns {list(shape)}, in which no dimension has the {classes} classes of the condition"
            raise DniGraphError(f"there is no data, and {words}: {way}")
    generator = torch.Generator().manual_seed(0)

    def drawn(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t

    batches = []
    for _ in range(RANDOM):
        target = (
            torch.randint(classes, shape, generator=generator) if classes else torch.randn(shape, generator=generator)
        )
        own_args, own_kwargs = map_tensors(drawn, (tuple(args), dict(kwargs)))
        batches.append(as_batch(Batch(tuple(own_args), own_kwargs, target)))
    return batches, loss


def _over_the_last(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the classes in the last dimension."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())
