"""What a user of recurrent networks can do wrong: all misfits at once, and the way out."""

from collections.abc import Sequence

from dnigraph.passes.errors import DniGraphError, bullets


class RecurrentError(DniGraphError, ValueError):
    """A step module, a window or an option does not fit. `misfits` lists everything that does not; `way_out` helps."""

    def __init__(self, misfits: Sequence[str], way_out: str):
        self.misfits, self.way_out = tuple(misfits), way_out
        super().__init__(f"the recurrent model cannot go on:{bullets(self.misfits)}\nway out: {way_out}")
