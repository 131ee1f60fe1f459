"""A decoupled model as a network: each part an agent, each crossing a link with the boundary that stands on it."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dnigraph.captured import CapturedModule
from dnigraph.passes.capture.trees import Tree
from dnigraph.passes.plan import Part
from dnigraph.passes.split import Value
from dnigraph.updates import MakeOptimizer, check_names, chosen
from dnigraph.variant import Variant

from .description.ports import outputs_of
from .network import Network

RESULT = "result"  # the agent that puts the model's output together where several parts make it

Loss = Callable[[Any, Any], Tensor] | str


class PartModule(nn.Module):
    """A part that takes its values by name and gives them by name."""

    def __init__(self, module: nn.Module, part: Part) -> None:
        super().__init__()
        self.module, self.part = module, part

    def forward(self, **values: Any) -> dict[str, Any]:
        made = self.module(*(values[name] for name in self.part.inputs))
        return dict(zip(self.part.outputs, made if len(self.part.outputs) > 1 else (made,), strict=True))


class Result(nn.Module):
    """Hands on what it is given."""

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
    plan, variant = dm.plan, dm._now()
    synthetic = dm.unlock == "forward"
    named = optimizer if isinstance(optimizer, Mapping) else {"*": optimizer}
    check_names([named], [*(part.name for part in plan.parts), RESULT])
    net = Network(seed=seed, log=log)
    alone = _only_maker(variant)
    build = variant.recording.outputs
    for part in plan.parts:
        own = _loss(loss, build, variant) if part.name == alone else None
        module = PartModule(variant.parts[part.name], part)
        net.add(part.name, module, loss=own, optimizer=chosen(named, part.name), p_update=p_update)
    for name in plan.inputs:
        if readers := [f"{part.name}.{name}" for part in plan.parts if name in part.inputs]:
            net.connect(name, readers)
    for crossing in plan.crossings:
        boundary = dm.boundaries.get(crossing.name) if crossing.gradient else None
        sinks = [f"{name}.{crossing.node}" for name in crossing.consumers]
        foretold = synthetic and boundary is not None
        net.connect(f"{crossing.producer}.{crossing.node}", sinks, delay=0, boundary=boundary, synthetic=foretold)
    if alone is None:
        _gather(net, variant, _loss(loss, build, variant))
    return net


def _only_maker(variant: Variant) -> str | None:
    """The part that makes all of the model's output; None: there are several, or it hands its values on, too."""
    makers = {_maker(variant, value) for value in variant.cutting.split.outputs if isinstance(value, Value)}
    return next(iter(makers)) if len(makers) == 1 else None


def _maker(variant: Variant, value: Value) -> str | None:
    return next((part.name for part in variant.plan.parts if value.name in part.outputs), None)


def _gather(net: Network, variant: Variant, loss: Callable[[Any, Any], Any]) -> None:
    """An agent behind all parts that make some of the output; they learn when the loss is known, as in `Local`."""
    net.add(RESULT, Result(), loss=loss)
    values = dict.fromkeys(v.name for v in variant.cutting.split.outputs if isinstance(v, Value))
    for name in values:
        maker = _maker(variant, Value(name))
        net.connect(f"{maker}.{name}" if maker else name, f"{RESULT}.{name}", delay=0, boundary="oracle")


def _loss(loss: Loss, build: Tree, variant: Variant) -> Callable[[Any, Any], Any]:
    outputs = variant.cutting.split.outputs

    def of(made: Any, target: Any) -> Any:
        values = outputs_of(made)
        whole = build.build([values[v.name] if isinstance(v, Value) else v for v in outputs])
        if callable(loss):
            return loss(whole, target)
        return whole.get(loss) if isinstance(whole, Mapping) else getattr(whole, loss, None)

    of.__name__ = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return of
