"""Updates that were skipped, since a gradient was not finite."""

import warnings
from collections import Counter


class Skips:
    """Counts them by agent, and tells the user of the first one.

    A loss, a target or a message that is not finite would make the weights of its agent so, those of the agents that it
    hears from by its answers, and those of heads. So such answers are not sent, and such gradients move nothing.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._told = False

    def note(self, owner: str, tick: int, what: str) -> None:
        """Note that an agent, or a head, did not learn, since `what` is not finite."""
        self.counts[owner] += 1
        if self._told:
            return
        self._told = True
        warnings.warn(
            f"{owner}, tick {tick}: {what} is not finite. This update is skipped, and nothing of it goes back to "
            "others. net.skipped counts such updates by agent; they are not told again. Look at its inputs, target and "
            "loss; a value that stays so in a circle of messages is gone after tick(..., ends=True)",
            stacklevel=3,
        )
