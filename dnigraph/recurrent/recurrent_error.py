"""The error of recurrent networks: all misfits at once, and the way out."""

from collections.abc import Callable, Sequence
from typing import Any

from ..passes.errors import DniGraphError, bullets


class RecurrentError(DniGraphError, ValueError):
    """A step module, a window or an option does not fit. `misfits` lists everything that does not; `way_out` helps."""

    def __init__(self, misfits: Sequence[str], way_out: str):
        self.misfits, self.way_out = tuple(misfits), way_out
        super().__init__(f"the recurrent model cannot go on:{bullets(self.misfits)}\nway out: {way_out}")


def all_at_once(*makers: Callable[[], Any]) -> list[Any]:
    """The results of all makers.

    Raises:
        RecurrentError: some cannot; the misfits of all of them are listed.
    """
    made, errors = [], []
    for make in makers:
        try:
            made.append(make())
        except RecurrentError as error:
            errors.append(error)
    if errors:
        misfits = [misfit for error in errors for misfit in error.misfits]
        raise RecurrentError(misfits, "; ".join(dict.fromkeys(error.way_out for error in errors)))
    return made
