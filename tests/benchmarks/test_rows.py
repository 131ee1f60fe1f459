"""Rows that say where they come from."""

import json

import pytest

pytest.importorskip("benchmarks.rows", reason="the benchmarks are only in a checkout")

from benchmarks import rows

ORIGIN = {"commit", "date", "torch", "python", "processor", "threads", "origin"}
FILES = sorted(rows.RESULTS.glob("*.jsonl"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some" / "rows.jsonl"


def test_a_row_is_a_line_and_comes_back_with_its_origin(file):
    rows.put(file, {"arm": "DNI", "seed": 3, "score": 1.0}, ["arm", "seed"])
    rows.put(file, {"arm": "DNI", "seed": 4, "score": 2.0}, ["arm", "seed"])

    assert len(file.read_text().splitlines()) == 2
    first, second = rows.read(file)
    assert (first["seed"], first["score"], second["seed"], second["score"]) == (3, 1.0, 4, 2.0)
    assert set(first) >= ORIGIN
    assert first["origin"] == "measured"


def test_a_run_changes_nothing_in_the_rows_of_others(file, monkeypatch):
    rows.put(file, {"arm": "backprop", "score": 1.0}, ["arm"])
    rows.put(file, {"arm": "DNI", "score": 1.0}, ["arm"])
    before = file.read_text().splitlines()
    monkeypatch.setattr(rows, "COMMIT", "another")

    rows.put(file, {"arm": "DNI", "score": 0.5}, ["arm"])

    after = file.read_text().splitlines()
    assert after[0] == before[0]
    assert json.loads(after[1])["commit"] == "another" != json.loads(after[0])["commit"]
    assert len(after) == 2


def test_a_new_measurement_takes_the_place_of_the_old_one(file):
    rows.put(file, {"arm": "old"}, ["arm"])

    rows.replace(file, [{"arm": "a"}, {"arm": "b"}])

    assert [row["arm"] for row in rows.read(file)] == ["a", "b"]


def test_where_no_file_is_there_are_no_rows(file):
    assert rows.read(file) == []


def test_numbers_are_as_long_as_asked_wherever_they_lie():
    value = {"score": 1.23456789, "bits": [1e-9 / 3, 7], "name": "x", "whole": 123456789, "lost": float("nan")}

    cut = rows.rounded(value, 4)

    assert cut == {"score": 1.235, "bits": [3.333e-10, 7], "name": "x", "whole": 123456789, "lost": None}


def test_a_write_that_is_interrupted_leaves_the_old_file(file, monkeypatch):
    rows.replace(file, [{"arm": "old"}])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.replace(file, [{"arm": "new"}])

    assert [row["arm"] for row in rows.read(file)] == ["old"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_row_that_is_kept_says_where_it_comes_from_and_is_there_once(file):
    kept = rows.read(file)

    assert kept
    for row in kept:
        assert set(row) >= {*ORIGIN, "seed"}
        assert row["origin"] in ("measured", "reconstructed")
    settings = ("arm", "task", "model", "seed", "p", "cuts", "nodes", "agents", "horizon", "blanks", "text", "data")
    keys = [tuple(row.get(name) for name in settings) for row in kept]
    assert len(set(keys)) == len(keys)
