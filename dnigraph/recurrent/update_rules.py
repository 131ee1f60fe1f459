"""The optimisers of a recurrent run: one for the core, one for the head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine.updates.groups import Group
from ..engine.updates.makers import run_misfits
from ..engine.updates.rules import Rules
from ..passes.errors import nearest
from .recurrent_error import RecurrentError

NAMES = ("core", "heads")
ENTRIES = "there are 'core', 'heads', and '*' for the rest"
OWN = "one optimiser is made for the core and one for the heads, each of its own parameters"


def check_rules(loss: Any, optimizer: Any, scheduler: Any, clip: Any, monitor: Any) -> None:
    """Check what the user gives for learning.

    Raises:
        RecurrentError: an argument does not fit; all of them are listed.
    """
    misfits = run_misfits(loss, optimizer, scheduler, clip, monitor)
    for name, choice in (("optimizer", optimizer), ("scheduler", scheduler), ("clip", clip)):
        strange = [key for key in choice if key not in (*NAMES, "*")] if isinstance(choice, Mapping) else []
        misfits += [f"{name}: there is nothing called {key!r}{nearest(str(key), NAMES)}; {ENTRIES}" for key in strange]
    if misfits:
        raise RecurrentError(misfits, "see help(dg.Recurrent) for what each argument means")


def rules_of(optimizer: Any, scheduler: Any, clip: Any) -> Rules:
    """The user's optimisers, schedules and clips for "core" and "heads". A plain number clips the core."""
    clips = clip if isinstance(clip, Mapping) else {"core": clip}
    return Rules(optimizer, scheduler, clips, lambda words: RecurrentError([words], OWN))


def step_groups(groups: Mapping[str, Group], loss: Tensor | None) -> float:
    """One update of all, unless a gradient is not finite: then nothing moves. Returns the core's norm before the clip.

    Args:
        loss: the window's, for schedules that look at it; None: nothing of it counts.

    A non-finite value in a window always shows in the core's gradient, so the head's is only checked if it is
    clipped or if there is no core group.
    """
    norms = {
        name: _clipped(g) for name, g in groups.items() if name == "core" or g.clip is not None or len(groups) == 1
    }
    sound = all(norm < float("inf") for norm in norms.values())  # false for nan, too
    for group in groups.values():
        if sound and any(p.grad is not None for p in group.parameters):
            group.optimizer.step()
            group.advance(loss)
        group.forget()
    return norms.get("core", 0.0) if sound else float("nan")


def _clipped(group: Group) -> float:
    """The norm of the gradient, which is then no larger than the clip."""
    gradients = [p.grad for p in group.parameters if p.grad is not None]
    if not gradients:
        return 0.0
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total)
    if group.clip is not None and group.clip < norm < float("inf"):
        torch.nn.utils.clip_grads_with_norm_(group.parameters, group.clip, total)
    return norm
