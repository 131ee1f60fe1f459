"""The error of networks: it lists every problem at once."""

from collections.abc import Sequence

from ...passes.errors import DniGraphError, bullets


class NetworkError(DniGraphError, ValueError):
    """Agents, links or what a tick is given do not fit. `problems` lists everything that does not."""

    def __init__(self, problems: Sequence[str], what: str = "the network cannot run"):
        self.problems = tuple(problems)
        super().__init__(f"{what}:{bullets(self.problems)}")
