"""A decoupled model as a network: each part an agent, each crossing a link with its boundary."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..decoupled.on_graphs import CapturedModule
from ..decoupled.specialization import Specialization
from ..passes.errors import DniGraphError, nearest
from ..passes.graph.pytrees import Tree, field_of
from ..passes.parts.split import Value
from ..passes.plan.plan import Part
from ..runners.makers import loss_misfits, maker_misfits
from ..runners.optimizers import HEADS, MakeOptimizer, check_names, chosen
from .description.network_error import NetworkError
from .description.ports import outputs_of
from .network import Network

RESULT = "result"  # the agent that puts the model's output together where several parts make it

Loss = Callable[[Any, Any], Tensor] | str


class PartModule(nn.Module):
    """A part that takes its values by name and gives them by name.

    Shapes: those of the plan's crossings.
    """

    def __init__(self, module: nn.Module, part: Part) -> None:
        super().__init__()
        self.module, self.part = module, part

    def forward(self, **values: Any) -> dict[str, Any]:
        outputs = self.module(*(values[name] for name in self.part.inputs))
        return dict(zip(self.part.outputs, outputs if len(self.part.outputs) > 1 else (outputs,), strict=True))


class Result(nn.Module):
    """Returns its inputs, under the same names.

    Shapes: any.
    """

    def forward(self, **values: Any) -> dict[str, Any]:
        return values


def network_of(
    dm: CapturedModule, loss: Loss, optimizer: MakeOptimizer | Mapping[str, MakeOptimizer] | None, p_update: float,
    seed: int, log: bool,
) -> Network:  # fmt: skip
    """The network that computes and learns what `Local` does, with agents that are called as the parts.

    Its inputs are called as those of the plan. Where the model was unlocked forward, every crossing that carries a
    gradient is predicted by its readers.
    """
    plan, specialization = dm.plan, dm.specialization
    synthetic = dm.unlock == "forward"
    _refuse(dm, specialization, loss, optimizer)
    net = Network(seed=seed, log=log)
    alone = _only_maker(specialization)
    build = specialization.captured.outputs
    for part in plan.parts:
        own = _loss(loss, build, specialization) if part.name == alone else None
        module = PartModule(specialization.parts[part.name], part)
        net.add(part.name, module, loss=own, optimizer=_maker(dm, optimizer, part.name), p_update=p_update)
    for name in plan.inputs:
        if readers := [f"{part.name}.{name}" for part in plan.parts if name in part.inputs]:
            net.connect(name, readers)
    for crossing in plan.crossings:
        boundary = dm.boundaries.get(crossing.name) if crossing.gradient else None
        sinks = [f"{name}.{crossing.node}" for name in crossing.consumers]
        predicted = synthetic and boundary is not None
        net.connect(f"{crossing.producer}.{crossing.node}", sinks, delay=0, boundary=boundary, synthetic=predicted)
    if alone is None:
        _gather(net, specialization, _loss(loss, build, specialization))
    return net


def _refuse(dm: CapturedModule, specialization: Specialization, loss: Any, optimizer: Any) -> None:
    """Look for choices that fit nothing.

    Raises:
        NetworkError: a part or a head has no optimiser, or the loss is none; all faults are listed.
    """
    wrong = _wrong_loss(specialization, loss)
    if isinstance(optimizer, Mapping):
        parts = [name for name, part in specialization.parts.items() if any(p.requires_grad for p in part.parameters())]
        names = [*(part.name for part in specialization.plan.parts), HEADS, *(f"dni.{name}" for name in dm.boundaries)]
        try:
            check_names([optimizer], names)
        except DniGraphError as error:
            wrong.append(str(error))
        lacking = [name for name in parts if chosen(optimizer, name) is None]
        wrong += [f"no optimiser is named for {name}; add an entry '*' for the rest" for name in lacking]
    wrong += maker_misfits(optimizer)
    if wrong:
        raise NetworkError(wrong, "the model cannot become a network")


def _wrong_loss(specialization: Specialization, loss: Any) -> list[str]:
    if not isinstance(loss, str):
        return loss_misfits(loss)
    count = len(specialization.split.outputs)
    whole: Any = specialization.build([torch.zeros(()) for _ in range(count)])
    names = [str(n) for n in (whole if isinstance(whole, Mapping) else getattr(whole, "__dict__", {}))]
    names = list(getattr(whole, "_fields", names))
    if loss in names or field_of(whole, loss) is not None:
        return []
    known = f"; outputs: {', '.join(names)}" if names else ": the model returns one without names"
    return [f"loss={loss!r}: there is no such output{nearest(loss, names)}{known}"]


def _maker(dm: CapturedModule, choice: Any, part: str) -> MakeOptimizer | None:
    """What makes the optimisers of a part: its own, those of its heads and of the predictors of its inputs."""
    if not isinstance(choice, Mapping):
        return choice  # type: ignore[no-any-return]  # a callable, or None
    heads = {p: f"dni.{name}" for name, boundary in dm.boundaries.items() for p in boundary.parameters()}

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        names = heads.get(parameters[0], part), part, HEADS
        named = next(filter(None, (chosen(choice, name) for name in names)), None)
        if named is None:
            raise NetworkError([f"no optimiser is named for what belongs to {part}; add an entry '*' for the rest"])
        return named(parameters)  # type: ignore[no-any-return]  # the user's

    return make


def _only_maker(specialization: Specialization) -> str | None:
    """The part that makes all of the model's output; None: there are several, or it hands its values on, too."""
    makers = {_made_by(specialization, value) for value in specialization.split.outputs if isinstance(value, Value)}
    return next(iter(makers)) if len(makers) == 1 else None


def _made_by(specialization: Specialization, value: Value) -> str | None:
    return next((part.name for part in specialization.plan.parts if value.name in part.outputs), None)


def _gather(net: Network, specialization: Specialization, loss: Callable[[Any, Any], Any]) -> None:
    """An agent behind all parts that make some of the output; they learn when the loss is known, as in `Local`."""
    net.add(RESULT, Result(), loss=loss)
    values = dict.fromkeys(v.name for v in specialization.split.outputs if isinstance(v, Value))
    for name in values:
        maker = _made_by(specialization, Value(name))
        net.connect(f"{maker}.{name}" if maker else name, f"{RESULT}.{name}", delay=0, boundary="oracle")


def _loss(loss: Loss, build: Tree, specialization: Specialization) -> Callable[[Any, Any], Any]:
    outputs = specialization.split.outputs

    def of(results: Any, target: Any) -> Any:
        values = outputs_of(results)
        whole = build.build([values[v.name] if isinstance(v, Value) else v for v in outputs])
        if callable(loss):
            return loss(whole, target)
        return field_of(whole, loss)

    of.__name__ = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return of
