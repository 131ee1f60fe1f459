"""The climb along the rungs: which ones are tried, and why the others are refused."""

import pytest
import torch
from torch import nn

from dnigraph.passes.capture.ladder import LADDER, RUNGS, Climb, Rung, capture
from dnigraph.passes.errors import CaptureError, CutError, FirstCallError, StatefulModelError


def climbed(how, errors):
    """The rungs that a climb tries where some raise an error, and the climb."""
    climb, tried = Climb(how, nn.Linear(2, 2), (torch.ones(1, 2),), {}), []
    for rung in climb:
        tried.append(rung.name)
        with climb.attempt(rung):
            if rung.name in errors:
                raise errors[rung.name]
            break
    return tried, climb


def test_the_first_rung_that_does_ends_the_climb():
    assert climbed("auto", {})[0] == ["record"]
    assert climbed("auto", {"record": CaptureError(["this"])})[0] == ["record", "export"]


def test_each_reason_carries_its_rung():
    errors = {"record": CaptureError(["this", "that"]), "export": CaptureError(["else"])}

    _, climb = climbed("auto", errors)

    assert climb.reasons == ["record: this", "record: that", "export: else"]


def test_a_stateful_model_leaves_the_rungs_that_run_it_whole():
    tried, _ = climbed("auto", {"record": StatefulModelError(["a counter"])})

    assert tried == ["record", "hooks"]


def test_a_model_without_its_first_call_has_no_further_rung():
    tried, climb = climbed("auto", {"record": FirstCallError(["lazy"])})

    assert tried == ["record"]
    assert climb.reasons == ["record: lazy"]


def test_cuts_that_do_not_fit_the_first_rung_fit_none():
    with pytest.raises(CutError, match="nowhere"):
        climbed("auto", {"record": CutError(["nowhere"])})


def test_cuts_that_do_not_fit_a_later_rung_may_fit_the_next():
    errors = {"record": CaptureError(["this"]), "export": CutError(["hidden there"])}

    tried, climb = climbed("auto", errors)

    assert tried == ["record", "export", "hooks"]
    assert climb.reasons[-1] == "export: hidden there"
    with pytest.raises(CutError, match="hidden there"):
        climbed("auto", {**errors, "hooks": CutError(["nowhere"])})


def test_an_error_of_a_foreign_kind_is_a_reason_and_the_cause_of_what_is_left():
    error = RecursionError("too deep")

    tried, climb = climbed("auto", dict.fromkeys(LADDER, error))

    assert tried == list(LADDER)
    assert climb.reasons[0] == "record: RecursionError: too deep"
    assert climb.failure().__cause__ is error


def test_an_error_of_the_model_itself_is_the_models():
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("the model's own")

    with pytest.raises(KeyError, match="the model's own"):
        capture(Broken(), (torch.ones(1),), {})


def test_a_further_rung_is_one_line(monkeypatch):
    captured = object()
    monkeypatch.setitem(RUNGS, "new", Rung("new", lambda model, args, kwargs: captured))

    assert capture(nn.Linear(2, 2), (), {}, "new") is captured


def test_auto_tries_known_rungs_that_make_do_with_an_example():
    assert all(RUNGS[name].needs_example for name in LADDER)
    assert RUNGS[LADDER[-1]].runs_whole


def test_an_unknown_rung_is_named_with_those_there_are():
    with pytest.raises(CaptureError, match=r"there is no capture 'recrd'; there are auto, record.*nearest: record"):
        capture(nn.Linear(4, 4), (torch.ones(3, 4),), {}, "recrd")


def test_a_capture_without_an_example_must_be_symbolic():
    with pytest.raises(CaptureError, match="needs one example call"):
        capture(nn.Linear(4, 4), None, None)

    assert capture(nn.Sequential(nn.Linear(4, 4)), None, None, "symbolic").rung == "symbolic"
