"""Whether the heads of a model learn at all: looked at in drop-in training, and told once."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .boundary import Boundary
from .watch import TrainingWarning

STILL = 2  # updates of the model in which a head that never moved stays where it is, before that is told
STOPPED = 64  # the same for a head that has moved before: it may be updated less often on purpose


def names(many: Iterable[str], shown: int = 3) -> str:
    """Names of boundaries for a sentence: the first few of them."""
    listed = [f"'{name}'" for name in many]
    return ", ".join(listed[:shown]) + (f" and {len(listed) - shown} more" if len(listed) > shown else "")


def warn_frozen(boundaries: Iterable[Boundary], stacklevel: int = 3) -> None:
    """Tell of heads that cannot learn, those that were not told of before."""
    frozen = [b for b in boundaries if b.kind == "dni" and not b.told_frozen and is_frozen(b)]
    if not frozen:
        return
    for boundary in frozen:
        boundary.told_frozen = True
    warnings.warn(
        f"the heads on {names(b.spec.name for b in frozen)} are frozen: no parameter of theirs has requires_grad=True, "
        "so they never learn, and the layers below are taught by what they happen to say. An adapter library that "
        "wraps a decoupled model freezes them: put the adapters on the model first, and decouple that; or let the "
        "heads learn, `for p in dm.head_parameters(): p.requires_grad_(True)`, and make the optimiser after that",
        TrainingWarning,
        stacklevel=stacklevel,
    )


def is_frozen(boundary: Boundary) -> bool:
    """Whether a boundary has parameters, and none of them learns."""
    own = boundary.own_parameters()
    return bool(own) and not any(p.requires_grad for p in own)


@dataclass
class _Head:
    """What was seen of one boundary's parameters."""

    own: list[nn.Parameter]
    version: int
    settled: int  # visits from which it had learned when the model last moved
    sums: Tensor  # of each parameter
    still: int = 0  # updates of the model since it moved
    moved: bool = False
    told: bool = False


@dataclass
class HeadWatch:
    """Sees in drop-in training whether the optimiser that moves the model moves the heads, too.

    A tensor's version counts what was written to it, so that a look costs no look at numbers. An update that the heads
    alone miss may have a reason; two in a row, of heads that never moved and had what to learn from, have this one.
    """

    _heads: dict[str, _Head] = field(default_factory=dict)
    _versions: list[tuple[nn.Parameter, int]] = field(default_factory=list)  # of the model
    _looks: int = 0

    def look(self, model: nn.Module, boundaries: Mapping[str, nn.Module | None]) -> None:
        """One look, at the beginning of a call in train mode."""
        if torch.compiler.is_compiling():
            return
        moved = self._model_moved(model)
        still: list[Boundary] = []
        for key, boundary in boundaries.items():
            if isinstance(boundary, Boundary) and self._stays(key, boundary, moved):
                still.append(boundary)
        if still:
            self._tell(still)
        warn_frozen((b for b in boundaries.values() if isinstance(b, Boundary)), stacklevel=5)

    def _model_moved(self, model: nn.Module) -> bool:
        """Whether an optimiser has moved the model since the last look."""
        self._looks += 1
        seen = [p for p, version in self._versions if p._version != version]
        if seen:
            self._versions = [(seen[0], seen[0]._version)]  # one that is seen to move stands for all
        if not self._versions or self._looks % STOPPED == 0:
            self._versions = [(p, p._version) for p in model.parameters() if p.requires_grad]
        return bool(seen)

    def _stays(self, key: str, boundary: Boundary, moved: bool) -> bool:
        """Whether a boundary's parameters stay where they are, for the first time that this is certain."""
        head = self._heads.get(key)
        if head is None:
            own = boundary.own_parameters(anew=True)
            if own:
                self._heads[key] = _Head(own, _version(own), boundary.settled, _sums(own))
            return False
        if (version := _version(head.own)) != head.version:
            head.version, head.still, head.moved = version, 0, True
        elif moved and boundary.settled > head.settled:
            head.still += 1
        if moved:
            head.settled = boundary.settled
        if head.told or head.still < (STOPPED if head.moved else STILL) or is_frozen(boundary):
            return False
        own = boundary.own_parameters(anew=True)
        same = len(own) == len(head.own) and all(a is b for a, b in zip(own, head.own, strict=True))
        if not same or (not head.moved and not head.sums.equal(_sums(own))):
            del self._heads[key]  # they are other tensors now, or are written to in a way that counts no version
            return False
        head.told = True
        return True

    def _tell(self, still: list[Boundary]) -> None:
        warnings.warn(
            f"the optimiser moves the model and not the boundaries on {names(b.spec.name for b in still)}: their heads "
            "do not learn, and so the layers below them do not learn either. Make the optimiser of dm.parameters(), "
            "after decoupling (and after a call that brought a new boundary); or add the heads to the one that you "
            "have: optimizer.add_param_group({'params': list(dm.head_parameters())})",
            TrainingWarning,
            stacklevel=5,
        )


def _version(parameters: list[nn.Parameter]) -> int:
    return sum([p._version for p in parameters])


def _sums(parameters: list[nn.Parameter]) -> Tensor:
    return torch.stack([p.detach().sum(dtype=torch.float64) for p in parameters])
