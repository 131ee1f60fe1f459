"""A topological order of agents, kept up to date while links without delay are added one by one."""

from collections.abc import Iterable, Mapping


class TopologicalOrder:
    """Ranks of agents: over a link without delay the sender has a lower rank than the receiver.

    A link that agrees with the ranks costs nothing; otherwise only agents with ranks between its two ends are visited.
    So the time to wire a network grows about linearly with its links.

    Source: Pearce & Kelly 2007, A dynamic topological sort algorithm for directed acyclic graphs, JEA 11.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.rank = {name: i for i, name in enumerate(names)}
        self.after: dict[str, dict[str, None]] = {name: {} for name in self.rank}
        self._before: dict[str, dict[str, None]] = {name: {} for name in self.rank}

    def path(self, begin: str, end: str) -> list[str]:
        """The agents on a shortest path from one to the other; empty if there is none."""
        previous = self._reached(begin, self.after, last=self.rank[end]) if self.rank[begin] <= self.rank[end] else {}
        if end not in previous:
            return []
        path: list[str] = [end]
        while (earlier := previous[path[-1]]) is not None:
            path.append(earlier)
        return path[::-1]

    def add(self, begin: str, end: str) -> None:
        """Add a link. There must be no path from its end back to its beginning."""
        self.after[begin][end] = self._before[end][begin] = None
        if self.rank[begin] < self.rank[end]:
            return
        later = self._reached(end, self.after, last=self.rank[begin])
        earlier = self._reached(begin, self._before, first=self.rank[end])
        moved = sorted(earlier, key=self.rank.__getitem__) + sorted(later, key=self.rank.__getitem__)
        for name, rank in zip(moved, sorted(self.rank[name] for name in moved), strict=True):
            self.rank[name] = rank

    def _reached(
        self, begin: str, links: Mapping[str, Iterable[str]], first: int = 0, last: int | None = None
    ) -> dict[str, str | None]:
        """The agents that can be reached within a range of ranks, nearest first, each with its predecessor."""
        previous: dict[str, str | None] = {begin: None}
        frontier = [begin]
        for name in frontier:  # the list grows while it is read
            for other in links[name]:
                if other not in previous and first <= self.rank[other] <= (len(self.rank) if last is None else last):
                    previous[other] = name
                    frontier.append(other)
        return previous
