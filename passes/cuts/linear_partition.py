"""Divide a chain into stretches whose largest costs as little as can be. Numbers only.

Source:
    The linear partition problem (min-max), with bisection over the limit: Pinar and Aykanat 2004, "Fast optimal load
    balancing algorithms for 1D partitioning". Of the best divisions the one with the least weights is found by dynamic
    programming over the stretches.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Chain:
    """A chain with places where it may be divided. Its stations are its start, the places in order, and its end.

        start ─3─ place ─8─ place ─1─ place ─2─ end       in 3: 3 │ 8 │ 3

    Args:
        before: the cost of all that lies before each place, ascending.
        total: the cost of the whole.
        weights: what it costs otherwise to divide at each place.
    """

    def __init__(self, before: Sequence[int], total: int, weights: Sequence[int]):
        self.at = [0, *before, total]
        self.weights = np.array([0, *weights, 0], dtype=np.int64)

    def least(self, count: int) -> int:
        """The cost of the largest of `count` stretches, at its least.

        Requires:
            There are `count - 1` places or more.
        """
        return max(self._limit(count), *(b - a for a, b in pairwise(self.at)))

    def divide(self, count: int) -> tuple[int, ...]:
        """The numbers of the places, from 0, at which to divide the chain into `count` stretches.

        Requires:
            There are `count - 1` places or more.

        Guarantees:
            The largest stretch costs `least(count)`. Where it has no place inside, it stands alone, and the same holds
            for the largest of the others, down to one that can be divided.
            All that being so, the sum of the weights is least.
        """
        starts = self._starts(self._limit(count))
        first, last = self._windows(count, starts)
        # 1. For each station at which the k-th stretch may end: the least weights, and where the stretch then begins.
        values: Ints = np.zeros(1, dtype=np.int64)
        choices: list[Ints] = []
        for k in range(1, count + 1):
            here = np.arange(first[k], last[k] + 1)
            low = np.maximum(starts[here], first[k - 1])
            high = np.minimum(here - 1, last[k - 1])
            best = _least_in(values, low - first[k - 1], high - first[k - 1])
            values = self.weights[here] + values[best]
            choices.append(best + first[k - 1])
        # 2. Back from the end: the beginning of each stretch is the end of the one before.
        places, station = [], len(self.at) - 1
        for k in range(count, 1, -1):
            station = int(choices[k - 1][station - first[k]])
            places.append(station - 1)
        return tuple(reversed(places))

    def _limit(self, count: int) -> int:
        """The least possible cost of the largest stretch, not counting stretches that cannot be divided.

        Bisection: a higher limit never needs more stretches.
        """
        limits = range(self.at[-1])
        return bisect_left(limits, True, key=lambda limit: self._count(limit) <= count)

    def _count(self, limit: int) -> int:
        """How many stretches there must be if none costs more than `limit`, save those that cannot be divided."""
        station = count = 0
        while station < len(self.at) - 1:
            station = self._next(station, limit)
            count += 1
        return count

    def _next(self, station: int, limit: int) -> int:
        """The last station to which a stretch may go."""
        return max(station + 1, bisect_right(self.at, self.at[station] + limit) - 1)

    def _starts(self, limit: int) -> Ints:
        """For each station the first one from which a stretch may come."""
        at = np.array(self.at, dtype=np.int64)
        before = np.maximum(np.arange(len(at)) - 1, 0)
        return np.minimum(np.searchsorted(at, at - limit), before)

    def _windows(self, count: int, starts: Ints) -> tuple[list[int], list[int]]:
        """The first and the last station at which the k-th of `count` stretches may end, from k = 0."""
        end = len(self.at) - 1
        latest = np.searchsorted(starts, np.arange(len(starts)), side="right") - 1  # the last end from each start
        first, last = [end], [0]
        for _ in range(count):
            first.append(int(starts[first[-1]]))
            last.append(int(latest[last[-1]]))
        first = [max(station, k) for k, station in enumerate(reversed(first))]
        last = [min(station, end - (count - k)) for k, station in enumerate(last)]
        return first, last


def _least_in(values: Ints, low: Ints, high: Ints) -> Ints:
    """For each window the index of its least value, the first of several.

    Range minimum queries by a sparse table (Bender and Farach-Colton 2000): it holds the answers for all windows of
    1, 2, 4, ... values, and two of these cover any window.
    """
    table = [np.arange(len(values))]
    width = 1
    while 2 * width <= int((high - low).max()) + 1:
        table.append(_less(values, table[-1][:-width], table[-1][width:]))
        width *= 2
    result = np.empty_like(low)
    row = np.frexp((high - low + 1).astype(np.float64))[1] - 1  # the whole part of the binary logarithm of the width
    for r in range(len(table)):
        windows = np.flatnonzero(row == r)
        result[windows] = _less(values, table[r][low[windows]], table[r][high[windows] - (1 << r) + 1])
    return result


def _less(values: Ints, one: Ints, other: Ints) -> Ints:
    return np.where(values[one] <= values[other], one, other)
