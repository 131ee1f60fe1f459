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
FAR = np.iinfo(np.int64).max  # the weights on the way to a station that no stretch can end at


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
        at = np.array(self.at, dtype=np.int64)
        before = np.maximum(np.arange(len(at)) - 1, 0)  # a stretch that cannot be divided may cost more than the limit
        starts = np.minimum(np.searchsorted(at, at - self._limit(count)), before)  # where a stretch to here may begin
        # 1. For each station, if a stretch ends there: the least weights so far, and where the stretch then begins.
        least: Ints = np.full(len(at), FAR, dtype=np.int64)
        least[0] = 0
        begins: list[Ints] = []
        for _ in range(count):
            begins.append(_least_in(least, starts[1:], np.arange(len(starts) - 1)))
            best = least[begins[-1]]
            least = np.append(FAR, np.where(best == FAR, FAR, best + self.weights[1:]))
        # 2. Back from the end: the beginning of each stretch is the end of the one before.
        places, station = [], len(starts) - 1
        for stations in reversed(begins[1:]):
            station = int(stations[station - 1])
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
            station = max(station + 1, bisect_right(self.at, self.at[station] + limit) - 1)
            count += 1
        return count


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
