"""Wrong calls of public functions: an error of this library that says what was asked, or success; nothing else."""

import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg
from dnigraph.passes.draw import DrawError

X, Y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def decoupled(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dg.decouple(net(), ["1", "3"], X, **options)


class Odd:
    """Is nothing that anybody asked for."""


def lone_parameter():
    return nn.Parameter(torch.zeros(3))


# One of each kind of thing that a slip of the pen puts in the place of another.
WRONG = {
    "None": lambda: None,
    "zero": lambda: 0,
    "minus": lambda: -1,
    "many": lambda: 10**30,
    "nan": lambda: math.nan,
    "truth": lambda: True,
    "empty": lambda: "",
    "text": lambda: "no such thing",
    "pattern": lambda: "re:(",
    "glob": lambda: "[",
    "no list": list,
    "nested": lambda: [[["1"]]],
    "none of them": lambda: [None, 3.5],
    "no dict": dict,
    "numbers": lambda: {1: 2},
    "bytes": lambda: b"1",
    "tensor": lambda: X,
    "wide": lambda: torch.randn(4, 7),
    "labels": lambda: Y,
    "module": net,
    "class": lambda: nn.Linear,
    "object": Odd,
    "function": lambda: lambda: None,
    "generator": lambda: iter(()),
    "parameter": lone_parameter,
}


def tried(function, *args, **kwargs):
    """What a call gives or raises; anything foreign comes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **kwargs)
        except dg.DniGraphError as error:
            return error


WINDOW = torch.zeros(3, 4, 2), torch.zeros(3, 4, 5)


def stream(**options):
    return dg.Recurrent(nn.GRU(2, 5), horizon=3, loss=F.mse_loss, optimizer=torch.optim.SGD, **options)


ASKED = {
    "decouple's model": lambda v: dg.decouple(v, "1", X),
    "decouple's cuts": lambda v: dg.decouple(net(), v, X),
    "a cut among others": lambda v: dg.decouple(net(), ["1", v], X),
    "decouple's example": lambda v: dg.decouple(net(), "1", v),
    "decouple's keywords": lambda v: dg.decouple(net(), "1", None, v),
    "decouple's head": lambda v: dg.decouple(net(), "1", X, head=v),
    "decouple's condition": lambda v: dg.decouple(net(), "1", X, condition=v),
    "decouple's boundary": lambda v: dg.decouple(net(), "1", X, boundary=v),
    "decouple's unlock": lambda v: dg.decouple(net(), "1", X, unlock=v),
    "decouple's capture": lambda v: dg.decouple(net(), "1", X, capture=v),
    "plan's model": lambda v: dg.plan(v, "1", X),
    "plan's cuts": lambda v: dg.plan(net(), v, X),
    "plan's example": lambda v: dg.plan(net(), "1", v),
    "the places of a cut": lambda v: dg.plan(net(), dg.after(v), X),
    "an edge": lambda v: dg.plan(net(), ("1", v), X),
    "balanced parts": lambda v: dg.plan(net(), dg.balanced(v), X),
    "balanced cost": lambda v: dg.plan(net(), dg.balanced(2, v), X),
    "balanced bytes": lambda v: dg.plan(net(), dg.balanced(2, max_crossing_bytes=v), X),
    "dni's warm-up": lambda v: decoupled(boundary=dg.dni(warm_up=v)),
    "dni's refresh": lambda v: decoupled(boundary=dg.dni(refresh=v)),
    "dni's blend": lambda v: decoupled(boundary=dg.dni(blend=v)),
    "dni's replay": lambda v: decoupled(boundary=dg.dni(replay=v)),
    "dni's decay": lambda v: decoupled(boundary=dg.dni(decay=v)),
    "dfa's scale": lambda v: decoupled(boundary=dg.dfa(v)),
    "delayed's stash": lambda v: decoupled(boundary=dg.delayed(stash=v)),
    "auglocal's layers": lambda v: decoupled(boundary=dg.auglocal(v, classes=3)),
    "auglocal's classes": lambda v: decoupled(boundary=dg.auglocal(classes=v)),
    "auglocal's hidden": lambda v: decoupled(boundary=dg.auglocal(hidden=v, classes=3)),
    "infopro's weight": lambda v: decoupled(boundary=dg.infopro(v, classes=3)),
    "infopro's input": lambda v: decoupled(boundary=dg.infopro(input=v, classes=3)),
    "infopro's decoder": lambda v: decoupled(boundary=dg.infopro(decoder=v, classes=3)),
    "a warmed-up boundary": lambda v: decoupled(boundary=dg.warm_up(v, 2)),
    "classes": lambda v: decoupled(condition=dg.one_hot(v)),
    "check's model": lambda v: dg.check(v, X),
    "check's input": lambda v: dg.check(decoupled(), v),
    "probe's model": lambda v: dg.probe(v, X, target=Y, loss=F.cross_entropy),
    "probe's input": lambda v: dg.probe(decoupled(), v, target=Y, loss=F.cross_entropy),
    "probe's target": lambda v: dg.probe(decoupled(), X, target=v, loss=F.cross_entropy),
    "probe's loss": lambda v: dg.probe(decoupled(), X, target=Y, loss=v),
    "what draw draws": lambda v: dg.draw(v, "/nowhere/x.svg"),
    "where a plan is": lambda v: dg.Plan.load(v),
    "what a plan is made of": lambda v: dg.Plan.from_json(v),
    "a window's end": lambda v: stream(boundary=v).step(*WINDOW),
    "what a blend in time goes around": lambda v: stream(boundary=dg.blend(v, 0.5)).step(*WINDOW),
    "a cap in time": lambda v: stream(boundary=dg.dni_in_time(cap=v)).step(*WINDOW),
    "an auxiliary weight": lambda v: stream(boundary=dg.dni_in_time(auxiliary=v)).step(*WINDOW),
    "what is evaluated": lambda v: stream().evaluate(v),
    "a batch of a loader": lambda v: stream().evaluate([v]),
    "metrics": lambda v: stream().evaluate(*WINDOW, metrics=v),
    "lengths": lambda v: stream().evaluate(*WINDOW, lengths=v),
    "unroll's step": lambda v: dg.unroll(v, WINDOW[0]),
    "unroll's example": lambda v: dg.unroll(nn.GRU(2, 5), v),
    "unroll's readout": lambda v: dg.unroll(nn.GRU(2, 5), WINDOW[0], readout=v),
    "unroll's first state": lambda v: dg.unroll(nn.GRU(2, 5), WINDOW[0], initial=v),
    "unroll's boundary": lambda v: dg.unroll(nn.GRU(2, 5), WINDOW[0], boundary=v),
    "an unrolled window": lambda v: dg.unroll(nn.GRU(2, 5), WINDOW[0])(v),
}


@pytest.mark.parametrize("number", range(len(ASKED)), ids=ASKED)
def test_a_wrong_argument_is_an_error_of_this_library_or_nothing(number):
    call, every = list(ASKED.values())[number], list(WRONG.values())
    for make in every[number % 4 :: 4]:  # a quarter of them, another one for the next argument: all take a minute
        result = tried(call, make())
        assert not isinstance(result, Exception) or str(result).strip(), "an error without a word"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dg.decouple(net(), X), "cuts is a tensor; where to cut comes before the example"),
        (lambda: dg.decouple(net(), {"input": X}), "."),
        (lambda: dg.decouple(net(), "1", {"input": X}), "pass it as example_kwargs=batch"),
        (lambda: dg.decouple(net(), "1", (X, X)), "too many positional arguments; given: Tensor, Tensor"),
        (lambda: dg.decouple(net(), "1", torch.randn(4, 7)), "the model itself fails on the example: RuntimeError"),
        (lambda: dg.decouple(nn.Linear, "1", X), "the class Linear: make a model of it"),
        (lambda: dg.decouple(torch.compile(net()), "2", X), "nearest: _orig_mod.2"),
        (lambda: dg.decouple(decoupled(), "1", X), "start from dm.recouple"),
        (
            lambda: dg.decouple(3, X, X, 5, unlock="no"),
            "a int.*cuts is a tensor.*example_kwargs is a dict.*unlock='no'",
        ),
        (lambda: dg.decouple(net().to("meta"), "1", X.to("meta")), "dg.plan shows how it would be cut"),
        (lambda: dg.plan(net().to("meta"), "1", X), "The model is on meta, the example on cpu"),
        (lambda: dg.draw(net(), "x.svg"), "draw takes a decoupled model.*draw dg.plan"),
        (lambda: dg.check(net(), X), "check takes what dg.decouple"),
        (lambda: dg.check(decoupled()), "one call of it, check.dm, ....*missing a required argument"),
        (lambda: dg.check(decoupled(), torch.randn(4, 7)), "the call fails: RuntimeError"),
        (lambda: dg.probe(decoupled(), X, target=Y, loss="loss"), "loss='loss' must give one number"),
        (lambda: dg.probe(decoupled().eval(), X, target=Y, loss=F.cross_entropy), "call dm.train"),
        (lambda: dg.probe(decoupled(), X, target=X, loss=F.nll_loss), "the loss fails: "),
    ],
)
def test_a_slip_is_told_with_the_way_out(call, words):
    error = tried(call)

    assert isinstance(error, dg.DniGraphError)
    assert re.search(words, str(error), re.DOTALL), str(error)


def test_the_error_of_the_model_is_the_cause():
    error = tried(dg.decouple, net(), "1", torch.randn(4, 7))

    assert isinstance(error.__cause__, RuntimeError)


def test_silent_is_a_name_of_a_boundary():
    dm = decoupled(boundary="silent")

    F.cross_entropy(dm(X), Y).backward()

    assert [b.kind for b in dm.boundaries.values()] == ["silent", "silent"]
    assert [p.grad is None for p in dm.model_parameters()] == [True] * 4 + [False] * 2


def test_a_drawing_makes_its_folder(tmp_path):
    dg.draw(decoupled(), tmp_path / "new" / "folder" / "net.svg")

    assert (tmp_path / "new" / "folder" / "net.svg").read_text().startswith("<svg")


def test_a_drawing_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "x.svg").mkdir()
    with pytest.raises(DrawError, match="cannot be written"):
        dg.draw(decoupled().plan, tmp_path / "x.svg")


def test_a_probe_reads_the_loss_from_a_field():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, y):
            scores = self.net(x)
            return {"scores": scores, "loss": F.cross_entropy(scores, y)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dm = dg.decouple(Scored(), "net.1", (X, Y), boundary="oracle")

    found = dg.probe(dm, X, Y, target=Y, loss="loss")

    assert found.crossings["net.1"] == pytest.approx(1.0)


def test_a_plan_of_a_model_that_holds_no_numbers():
    meta = net().to("meta")

    plan = dg.plan(meta, 2, X.to("meta"))

    assert plan.capture == "record" and len(plan.parts) == 2
    assert all(p.is_meta for p in meta.parameters())
    assert plan.crossings[0].shape == (4, 6)


@pytest.mark.parametrize("call", [dg.decouple, dg.plan])
def test_inside_inference_mode_nothing_can_be_decoupled(call):
    with torch.inference_mode(), pytest.raises(dg.DniGraphError, match=r"inside torch\.inference_mode.*outside"):
        call(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "0", (torch.ones(2, 4),))
