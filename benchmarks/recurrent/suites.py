"""The jobs of each suite, in the order in which they are run: what matters most first."""

from functools import partial

from ..jobs import Job
from ..rows import Row, read, results
from .training import Windows

SUITES = ("recall", "copy", "repeat", "characters", "rows")
FRESH = (101, 102, 103, 104, 105)  # seeds on which nothing was chosen
Settings = tuple[Row, int, int]  # the key of a job, its steps, and those of a turn


def groups(suite: str, text: str) -> list[list[Job]]:
    """All jobs of a suite that are not done, in groups; the jobs of a group take turns."""
    kept = read(results(f"recurrent_{suite}"))
    return [[job for settings in group if (job := _job(*settings, kept))] for group in _settings(suite, text)]


def _job(key: Row, steps: int, turn: int, kept: list[Row]) -> Job | None:
    """The job; None where the results have its whole row, from any machine."""
    row = next((row for row in kept if all(row[name] == value for name, value in key.items())), None)
    reached = row["iterations"] if row else 0
    if row and (reached >= steps or row["solved at"].get("0")):
        return None
    return Job(key, partial(Windows, key, steps, turn), steps, turn, reached)


def _settings(suite: str, text: str) -> list[list[Settings]]:
    if suite == "recall":
        return _recall()
    if suite == "characters":
        return _characters(text)
    if suite == "rows":
        arms = ("truncated", "DNI", "DNI, shuffled", "DNI + BP(0.9)", "BP(0.9), no head", "full BPTT")
        return [[(_key("rows", arm, seed, 4), 4000, 500) for arm in arms] for seed in (0, 1)]
    return _copy({"copy": "copy", "repeat": "repeat copy"}[suite])


def _recall() -> list[list[Settings]]:
    turns = [(12, arm, seed) for arm in ("DNI", "truncated", "DNI + BP(0.9)") for seed in FRESH]
    turns += [(20, "DNI + BP(0.9)", seed) for seed in FRESH[:3]]
    turns += [(12, "DNI, shuffled", seed) for seed in FRESH]
    turns += [(20, arm, seed) for arm in ("DNI", "truncated", "DNI, shuffled") for seed in FRESH[:3]]
    turns += [(12, arm, seed) for arm in ("full BPTT", "DNI + auxiliary") for seed in FRESH]
    turns += [(12, "DNI + auxiliary, weight 0.1", seed) for seed in FRESH[:3]]
    turns += [(12, "BP(0.9), no head", seed) for seed in FRESH]
    runs = [(blanks, arm, seed, 3) for blanks, arm, seed in turns] + [(12, "truncated", seed, 4) for seed in FRESH]
    return [[({**_key("recall", arm, seed, T), "blanks": blanks}, 5000, 5000)] for blanks, arm, seed, T in runs]


def _characters(text: str) -> list[list[Settings]]:
    first, others = ("truncated", "DNI"), ("DNI + auxiliary", "DNI, shuffled")
    runs = [(seed, horizon, first) for seed in range(5) for horizon in (4, 8, 2)]
    runs += [(seed, 4, others) for seed in range(3)]
    runs += [(0, horizon, first[:1]) for horizon in (20, 40)] + [(0, horizon, first) for horizon in (3, 6, 5, 7)]
    runs += [(seed, longer, first[:1]) for longer in (5, 3) for seed in range(1, 5)]  # a step more than 4 and 2
    return [
        [({**_key("characters", arm, seed, horizon), "text": text}, 25_000, 1000) for arm in arms]
        for seed, horizon, arms in runs
    ]


def _copy(task: str) -> list[list[Settings]]:
    seeds, arms = FRESH[:3], ("truncated", "DNI", "DNI + auxiliary")
    runs = [(3, 40_000, arms), (3, 40_000, ("DNI, shuffled",))]
    runs += [(horizon, 20_000, arms[:1]) for horizon in (10, 20)]
    runs += [(2, 20_000, arms), (4, 40_000, arms), (5, 20_000, arms)]
    return [
        [(_key(task, arm, seed, horizon), steps, 500) for seed in seeds for arm in arms]
        for horizon, steps, arms in runs
    ]


def _key(task: str, arm: str, seed: int, horizon: int) -> Row:
    return {"task": task, "arm": arm, "seed": seed, "horizon": horizon}
