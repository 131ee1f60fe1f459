"""The plan as a value: it saves, loads and refuses what is no plan."""

import copy
import dataclasses
import json
import pickle

import pytest

from dnigraph.passes.errors import PlanError
from dnigraph.passes.plan.plan import AROUND, LEAK, Crossing, Note, Part, Plan

PLAN = Plan(
    "Chain",
    "record",
    cuts=(("relu", "fc2"),),
    parts=(
        Part("part_0", 0, ("fc1", "relu"), ("x",), ("relu", "size"), 20, 480),
        Part("part_1", 1, ("fc2",), ("relu", "size"), ("fc2",), 8),
    ),
    crossings=(
        Crossing("relu", "relu", "part_0", ("part_1",), (5, 4), "float32", 80, True, True, "dni", "linear", 20),
        Crossing("size", "size", "part_0", ("part_1",), asked=False),
    ),
    inputs=("x",),
    notes=("one note",),
)


def test_a_saved_plan_loads_as_an_equal_plan(tmp_path):
    PLAN.save(tmp_path / "plan.json")

    loaded = Plan.load(tmp_path / "plan.json")

    assert loaded == PLAN
    assert hash(loaded) == hash(PLAN)  # lists all the way down became tuples again
    assert str(loaded) == str(PLAN)


def test_a_plan_is_plain_data_and_says_its_format():
    data = PLAN.to_json()

    assert json.loads(json.dumps(data))["format"] == 1
    assert Plan.from_json(json.loads(json.dumps(data))) == PLAN


def test_a_note_is_found_by_its_kind_and_is_a_plain_sentence_to_everyone_else():
    note = Note("'t' goes around the cuts", AROUND, "t")
    plan = dataclasses.replace(PLAN, notes=("one note", note))

    assert plan.notes_of(AROUND) == ("'t' goes around the cuts",)
    assert (plan.notes_of(AROUND)[0].crossing, plan.notes_of(LEAK)) == ("t", ())
    assert copy.deepcopy(plan).notes_of(AROUND) == pickle.loads(pickle.dumps(plan)).notes_of(AROUND) == (note,)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.model = "Other"  # type: ignore[misc]


@pytest.mark.parametrize("data", [{}, {"format": 0}, [], "plan"])
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(PlanError, match=r"no plan of format 1; write one with plan.save\(path\)"):
        Plan.from_json(data)


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("Chain: 2 parts")

    with pytest.raises(PlanError, match="is not JSON"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("spoil", [lambda d: d.pop("parts"), lambda d: d.update(more=1), lambda d: d.update(parts=[3])])
def test_a_spoilt_plan_is_refused_as_such(spoil):
    data = PLAN.to_json()
    spoil(data)

    with pytest.raises(PlanError, match="no whole plan of format 1"):
        Plan.from_json(data)


def changed(**fields):
    return json.dumps({**PLAN.to_json(), **fields})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(cuts=float("nan")), "the plan's cuts is nan"),
        (changed(cuts=[["a"]]), r"the plan's cuts\[0\] is a list"),
        (
            changed(parts=[{**PLAN.to_json()["parts"][0], "level": 10**30}]),
            "level is a number of another size",
        ),
        (changed(parts=[{"name": "part_0"}]), r"parts\[0\] lacks 'level'"),
        (changed(crossings=[7]), r"crossings\[0\] is a int"),
        (changed(model=["x"]), "the plan's model is a list"),
        (changed(notes=["x" * 100_000]), r"notes\[0\] has 100000 letters"),
        (changed(extra=1), "the plan has an unknown 'extra'"),
        ("[" * 100_000, "is not JSON"),
        ('{"format": ' + "9" * 5000 + "}", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_what_is_wrong(tmp_path, content, words):
    file = tmp_path / "plan.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(PlanError, match=words):
        Plan.load(file)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.json", None):
        with pytest.raises(PlanError, match="cannot be read"):
            Plan.load(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    PLAN.save(tmp_path / "plan.json")
    monkeypatch.setattr("dnigraph.passes.plan.plan.LARGEST", 100)

    with pytest.raises(PlanError, match="a plan has up to 100"):
        Plan.load(tmp_path / "plan.json")
