"""An order of agents that links without delay never go against, kept while links are added one by one."""

from collections.abc import Iterable, Mapping


class Order:
    """Ranks, so that whoever is read without delay stands before who reads.

    A link that fits the ranks costs nothing; for another one only what stands between its ends is looked at. So a
    network of thousands of agents is wired in about the time that its links take to write down.

    Source: Pearce & Kelly 2007, A dynamic topological sort algorithm for directed acyclic graphs, JEA 11.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.rank = {name: i for i, name in enumerate(names)}
        self.after: dict[str, dict[str, None]] = {name: {} for name in self.rank}
        self._before: dict[str, dict[str, None]] = {name: {} for name in self.rank}

    def way(self, begin: str, end: str) -> list[str]:
        """The agents on a shortest way from one to the other along the links; empty: there is none."""
        came = self._reached(begin, self.after, last=self.rank[end]) if self.rank[begin] <= self.rank[end] else {}
        if end not in came:
            return []
        way: list[str] = [end]
        while (before := came[way[-1]]) is not None:
            way.append(before)
        return way[::-1]

    def add(self, begin: str, end: str) -> None:
        """Add a link. There must be no way back from its end to its beginning."""
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
        """Who is reached without leaving these ranks, nearest first, and from whom."""
        came: dict[str, str | None] = {begin: None}
        edge = [begin]
        for name in edge:  # it grows
            for other in links[name]:
                if other not in came and first <= self.rank[other] <= (len(self.rank) if last is None else last):
                    came[other] = name
                    edge.append(other)
        return came
