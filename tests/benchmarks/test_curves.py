"""Learning curves, kept apart from the rows."""

import pytest

pytest.importorskip("benchmarks.curves", reason="the benchmarks are only in a checkout")

from benchmarks import curves, rows

NAMES = [name for name in curves.SHOWN if curves.curves(name).exists()]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    return tmp_path


def test_a_curve_takes_the_place_of_the_one_with_its_key(results):
    curves.put("two_clocks", {"arm": "a", "seed": 1}, [[1, 0.5, 10.0, 20.0]])
    curves.put("two_clocks", {"arm": "a", "seed": 2}, [[1, 0.5, 11.0, 21.0]])

    curves.put("two_clocks", {"arm": "a", "seed": 1}, [[1, 0.5, 1 / 3, 20.0], [2, 1.0, 13.0, 23.0]])

    assert curves.read("two_clocks") == [
        ({"arm": "a", "seed": 1}, [[1, 0.5, 0.3333, 20.0], [2, 1.0, 13.0, 23.0]]),
        ({"arm": "a", "seed": 2}, [[1, 0.5, 11.0, 21.0]]),
    ]


def test_the_same_curves_are_the_same_file(results):
    curves.put("two_clocks", {"arm": "a"}, [[1, 0.5, 10.0, 20.0]])
    first = curves.curves("two_clocks").read_bytes()

    curves.put("two_clocks", {"arm": "a"}, [[1, 0.5, 10.0, 20.0]])

    assert curves.curves("two_clocks").read_bytes() == first


@pytest.mark.parametrize("name", NAMES)
def test_every_curve_that_is_kept_is_that_of_a_row(name):
    kept = rows.read(rows.results(name))

    for key, points in curves.read(name):
        own = [row for row in kept if all(row[setting] == value for setting, value in key.items())]
        assert len(own) == 1
        assert points == sorted(points, key=lambda point: point[0])


def test_a_picture_names_every_arm_once_and_is_the_same_each_time(results):
    pytest.importorskip("matplotlib", reason="pictures are the extra `bench`")
    for arm, seed in (("DNI", 1), ("DNI", 2), ("truncated", 1)):
        curves.put("two_clocks", {"arm": arm, "seed": seed}, [[1, 0.5, 10.0, seed], [2, 1.0, 13.0, 23.0]])

    curves.draw("two_clocks", results / "one.svg")
    curves.draw("two_clocks", results / "two.svg")

    picture = (results / "one.svg").read_text()
    assert picture == (results / "two.svg").read_text()
    assert [picture.count(f">{text}<") for text in ("DNI", "truncated", "batches", "accuracy of B, %")] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_that_are_kept_are_there(name):
    assert curves.curves(name).with_name(f"{name}.svg").exists()
