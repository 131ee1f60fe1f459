"""What the first call of a model makes: made anew by every replay, or a refusal that asks for that call."""

import warnings

import pytest
import torch
from kit.replay import Doing, Net, assert_untouched, fingerprint, judge
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import CaptureError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def grows_a_table(model, x):
    if not hasattr(model, "table") or model.table.shape[0] < x.shape[0]:
        model.table = torch.arange(x.shape[0]).float()[:, None]
    return model.inner(x) + model.table[: x.shape[0]]


def keeps_a_table_by_size(model, x):
    tables = model.__dict__.setdefault("tables", {})
    if x.shape[0] not in tables:
        tables[x.shape[0]] = torch.arange(x.shape[0]).float()[:, None]
    return model.inner(x) + tables[x.shape[0]]


def keeps_a_table_by_name(model, x):
    tables = model.__dict__.setdefault("tables", {})
    name = f"{x.shape[0]} rows"
    if name not in tables:
        tables[name] = torch.arange(x.shape[0]).float()[:, None]
    return model.inner(x) + tables[name]


def keeps_what_it_made_of_its_weights(model, x):
    if model.training:
        return model.inner(x)
    tables = model.__dict__.setdefault("tables", {})
    if "bias" not in tables:
        tables["bias"] = model.outer.weight.sum(0)
    return model.inner(x) + tables["bias"]


def test_a_table_by_size_is_made_anew():
    verdict = judge(Doing(keeps_a_table_by_size), X)

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why
    assert not verdict.captured.constants


@pytest.mark.parametrize("function", [grows_a_table, keeps_a_table_by_name])
def test_a_cache_of_first_use_is_made_anew_in_every_replay(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
    assert not verdict.captured.constants


@pytest.mark.parametrize("grad", [True, False])
def test_a_cache_made_from_weights_follows_the_weights(grad):
    model = Doing(keeps_what_it_made_of_its_weights).eval()
    with torch.set_grad_enabled(grad):
        graph = capture(model, (X,), {}, "record").module(model)

    with torch.no_grad():
        model.outer.weight.mul_(2)
        assert torch.equal(graph(X)[0], model(X))


def from_its_first_batch(model, x):
    if model.training and not hasattr(model, "scale"):
        model.scale = float(x.abs().max())
    return model.inner(x) * model.scale


def from_its_first_weights(model, x):
    if not hasattr(model, "scale"):
        model.scale = model.outer.weight.detach().norm() + 0
    return model.inner(x) * model.scale


def divides_its_weights_once(model, x):
    if not hasattr(model, "divided"):
        model.divided = True
        model.inner.weight.data.div_(2)
    return model.inner(x)


@pytest.mark.parametrize("function", [from_its_first_batch, from_its_first_weights, divides_its_weights_once])
def test_what_the_first_call_decides_for_good_is_no_graph(function):
    verdict = judge(Doing(function), X)

    assert verdict.same == "refused"
    assert "call the model once before" in verdict.why


def test_a_cache_that_was_there_before_is_a_constant():
    model = Doing(grows_a_table)
    model(X)

    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why


def test_what_only_the_first_call_decides_asks_for_a_call_before():
    def starts_from_its_first_input(model, x):
        if not hasattr(model, "offset"):
            model.offset = x.detach().mean(0) + 0
        return model.inner(x) + model.offset

    model = Doing(starts_from_its_first_input)
    assert "call the model once before" in judge(model, X).why

    model(X)
    assert judge(model, X).same == "right"


def test_a_hook_that_removes_itself_is_gone_only_for_the_capture():
    model = Net(nn.Linear(4, 4))
    handle = model.body.register_forward_hook(lambda m, args, out: handle.remove())
    before = fingerprint(model)

    with pytest.raises(CaptureError, match="a hook of 'body' is gone after one call: call the model once before"):
        capture(model, (X,), {}, "record")

    assert_untouched(before, model)
    assert len(model.body._forward_hooks) == 1


def test_a_hook_that_the_first_call_installs_is_part_of_the_model():
    def installs(model, x):
        if not model.inner._forward_hooks:
            model.inner.register_forward_hook(lambda m, args, out: out * 2)
        return model.outer(model.inner(x))

    verdict = judge(Doing(installs), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_a_layer_without_a_size_asks_for_a_call_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = Net(nn.LazyLinear(4))

    with pytest.raises(CaptureError, match=r"'body\.0\.weight' has no size yet: call the model once before"):
        capture(model, (X,), {}, "record")
