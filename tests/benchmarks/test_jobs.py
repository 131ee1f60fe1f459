"""Long trainings take turns, and whoever stops them loses a turn at most."""

import itertools
import json

import pytest

pytest.importorskip("benchmarks.jobs", reason="the benchmarks are only in a checkout")

import torch

from benchmarks import curves, jobs, rows

LOG = []  # the seed of the job that made a step


class Walk(jobs.Training):
    """A random walk: its position depends on every step, and on the random numbers of all of them."""

    def __init__(self, seed, until=None):
        torch.manual_seed(seed)
        self.seed, self.until, self.position = seed, until, torch.zeros(())

    def step(self):
        LOG.append(self.seed)
        self.position += torch.rand(())

    def point(self, steps):
        return [float(self.position)] if steps % 2 == 0 else None

    def scores(self, curve):
        return {"position": float(self.position)}

    def save(self, file):
        torch.save({"position": self.position, "random": torch.get_rng_state()}, file)
        return {"said": "beside the net"}

    def load(self, file, data, steps):
        assert data == {"said": "beside the net"}
        state = torch.load(file)
        self.position = state["position"]
        torch.set_rng_state(state["random"])

    @property
    def ended(self):
        return self.until is not None and float(self.position) > self.until


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(jobs, "KEPT", tmp_path / "out")
    LOG.clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def walk(seed, steps=10, turn=4, **options):
    return jobs.Job({"arm": "walk, one", "seed": seed}, lambda: Walk(seed, **options), steps, turn)


def measured(benchmark="walks"):
    return {row["seed"]: row["position"] for row in rows.read(rows.results(benchmark))}


def test_stopped_after_every_turn_it_comes_to_the_numbers_of_never_having_stopped():
    jobs.take_turns("whole", [[walk(1)]], minutes=60)

    for _ in range(3):
        jobs.take_turns("walks", [[walk(1)]], minutes=0)

    assert measured() == measured("whole")
    points = [[(point[0], point[2]) for point in curves.read(name)[0][1]] for name in ("walks", "whole")]
    assert points[0] == points[1]
    assert [step for step, _ in points[0]] == [2, 4, 6, 8, 10]


def test_jobs_of_a_group_take_turns_and_the_next_group_waits():
    jobs.take_turns("walks", [[walk(1), walk(2)], [walk(3)]], minutes=60)

    turns = [(seed, len(list(steps))) for seed, steps in itertools.groupby(LOG)]
    assert turns == [(1, 4), (2, 4), (1, 4), (2, 4), (1, 2), (2, 2), (3, 10)]


def test_jobs_that_take_turns_do_not_feel_each_other():
    jobs.take_turns("whole", [[walk(1)], [walk(2)]], minutes=60)

    jobs.take_turns("walks", [[walk(1), walk(2)]], minutes=60)

    assert measured() == measured("whole")


def test_what_is_finished_is_not_run_again():
    jobs.take_turns("walks", [[walk(1)]], minutes=60)
    LOG.clear()

    jobs.take_turns("walks", [[walk(1)]], minutes=60)

    assert LOG == []


def test_a_row_that_was_not_written_any_more_is_written_by_the_next_run():
    jobs.take_turns("walks", [[walk(1)]], minutes=60)
    before = measured()
    rows.results("walks").unlink()
    LOG.clear()

    jobs.take_turns("walks", [[walk(1)]], minutes=60)

    assert measured() == before
    assert LOG == []


def test_it_ends_where_there_is_nothing_left_to_learn():
    jobs.take_turns("walks", [[walk(1, until=1.0)]], minutes=60)
    steps = len(LOG)

    jobs.take_turns("walks", [[walk(1, until=1.0)]], minutes=60)

    assert 1 < steps < 10
    assert len(LOG) == steps


def test_a_row_that_is_further_stays_until_it_is_reached():
    rows.put(rows.results("walks"), {"arm": "walk, one", "seed": 1, "position": 99.0}, ["arm", "seed"])
    job = walk(1)
    job.reached = 8

    jobs.take_turns("walks", [[job]], minutes=0)
    first = measured()
    jobs.take_turns("walks", [[job]], minutes=0)

    assert first == {1: 99.0}
    assert measured() != first


def test_stopped_while_it_keeps_its_net_it_goes_on_from_the_turn_before(monkeypatch):
    jobs.take_turns("whole", [[walk(1)]], minutes=60)
    jobs.take_turns("walks", [[walk(1)]], minutes=0)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jobs.take_turns("walks", [[walk(1)]], minutes=60)
    jobs.take_turns("walks", [[walk(1)]], minutes=60)

    assert measured() == measured("whole")
    assert len(list((jobs.KEPT / "walks").glob("*.pt"))) == 1


def test_what_it_keeps_is_plain_data_beside_the_net():
    jobs.take_turns("walks", [[walk(1)]], minutes=0)

    (progress,) = (jobs.KEPT / "walks").glob("*.json")
    assert progress.name == "arm=walk-one_seed=1.json"
    assert json.loads(progress.read_text())["done"] == 4


def squared(number, offset):
    return {"number": number, "square": number * number + offset, "threads": torch.get_num_threads()}


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_rows_of_one_piece_are_made_side_by_side_each_with_one_thread(processes):
    made = list(jobs.spread_out(squared, [(n, 1) for n in range(4)], processes))

    assert sorted((row["number"], row["square"], row["threads"]) for row in made) == [
        (n, n * n + 1, 1) for n in range(4)
    ]


def test_behind_the_time_no_row_is_begun():
    assert list(jobs.spread_out(squared, [(n, 1) for n in range(3)], 2, seconds=0)) == []
