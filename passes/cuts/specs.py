"""What a user may say about where to cut."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..graph.mark import cut as marker
from ..plan.plan import Plan

Edge = tuple[fx.Node, fx.Node]


@dataclass(frozen=True)
class After:
    """Cut what leaves a module, a mark, a node, or all that a pattern matches."""

    what: str


@dataclass(frozen=True)
class Before:
    """Cut what enters a module, a mark, a node, or all that a pattern matches."""

    what: str


def after(what: str) -> After:
    """Cut after a module path, glob, `re:` pattern, mark or node name; the same as the bare string."""
    return After(what)


def before(what: str) -> Before:
    """Cut before a module path, glob, `re:` pattern, mark or node name."""
    return Before(what)


@dataclass(frozen=True)
class Balanced:
    """Cut into `parts` parts of even cost. Made by `balanced`."""

    parts: int
    cost: str = "flops"
    max_crossing_bytes: int | None = None
    places: tuple[tuple[str, str], ...] | None = None  # chosen for another graph of the model: used if it has them

    def __str__(self) -> str:
        cost = f", cost={self.cost!r}" if self.cost != "flops" else ""
        most = f", max_crossing_bytes={self.max_crossing_bytes}" if self.max_crossing_bytes is not None else ""
        return f"balanced({self.parts!r}{cost}{most})"


def balanced(parts: int, cost: str = "flops", max_crossing_bytes: int | None = None) -> Balanced:
    """Cut into `parts` parts, so that the largest costs as little as can be; a plain number K is `balanced(K)`.

    Args:
        cost: "flops" of one forward run, where each scalar that is made counts one more; "time", in a timed run of the
            nodes; or "memory", the bytes of the activations that wait for their gradient.
        max_crossing_bytes: cut only where no more bytes cross, of values with a gradient.
    """
    return Balanced(parts, cost, max_crossing_bytes)


Cut = str | After | Before | tuple[str, str] | type[nn.Module] | Callable[[fx.Node], bool] | Plan | int | Balanced
Cuts = Cut | Iterable[Cut] | None


def wants_time(cuts: Cuts) -> bool:
    """Whether these cuts ask what nodes cost in time, which only a timed run can tell."""
    if isinstance(cuts, Iterator):
        return False  # to look would use it up
    return any(isinstance(spec, Balanced) and spec.cost == "time" and spec.places is None for spec in listed(cuts))


def spelled(spec: Any) -> str:
    """A cut as a user would write it."""
    if isinstance(spec, str):
        return f"cut {spec!r}"
    if isinstance(spec, Balanced):
        return f"cut {spec}"
    if isinstance(spec, After | Before):
        return f"cut {type(spec).__name__.lower()}({_name(spec.what)})"
    return f"cut {_name(spec)}"


def _name(spec: Any) -> str:
    if isinstance(spec, str | nn.Module | Mapping) or not callable(spec):
        return f"{type(spec).__name__}(...)" if isinstance(spec, nn.Module) else repr(spec)
    return str(getattr(spec, "__name__", spec))


def listed(cuts: Any) -> list[Any]:
    """What a user gave as `cuts`, as a list of single specs."""
    if cuts is None:
        return [marker]
    single = isinstance(cuts, str | After | Before | Plan | type | Mapping) or callable(cuts) or is_edge(cuts)
    listed = [cuts] if single or not isinstance(cuts, Iterable) else list(cuts)
    return [balanced(cut) if isinstance(cut, int) and not isinstance(cut, bool) else cut for cut in listed]


def is_edge(spec: Any) -> bool:
    """Whether a spec is a pair of names."""
    return isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(end, str) for end in spec)
