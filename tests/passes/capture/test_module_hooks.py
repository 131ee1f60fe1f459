"""Hooks for one call of a model that is left as it was."""

import threading
from functools import partial

import pytest
import torch
from kit.replay import Doing, assert_untouched, fingerprint
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.module_hooks import Watch

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def watched(model, *args, places=None, handle=lambda site, tensor: tensor):
    """The sites of one call, in order, as text."""
    sites = []

    def note(site, tensor):
        sites.append(f"{site.key} {site.side} {site.leaf}")
        return handle(site, tensor)

    with Watch(model, note, places).attached():
        model(*args)
    return sites


def test_tensors_with_a_gradient_are_seen_where_they_enter_and_leave_modules_and_at_marks():
    model = Doing(lambda m, x: m.inner(dg.cut(m.inner(x), name="mid")))

    assert watched(model, X) == ["inner leave 0", "mid mark 0", "inner@2 enter 0", "inner@2 leave 0"]


def test_only_the_places_that_are_named_are_watched():
    model = Doing(lambda m, x: m.outer(dg.cut(m.inner(x))))

    assert watched(model, X, places={("outer", "enter")}) == ["outer enter 0"]
    assert watched(model, X, places={("cut", "mark")}) == ["cut mark 0"]  # a mark without a name


def test_what_the_handler_returns_goes_on_in_the_place_of_the_tensor():
    model = Doing(lambda m, x: m.inner(x))

    with Watch(model, lambda site, tensor: tensor * 0).attached():
        out = model(X)

    assert out.eq(0).all() and model(X).ne(0).any()


def test_one_tensor_given_twice_is_handled_once_and_stays_one():
    model = Doing(lambda m, x: m.outer((h := m.inner(x), h)))
    model.outer.forward = lambda pair: pair[0] is pair[1]
    results = []
    model.register_forward_hook(lambda module, args, out: results.append(out))

    assert watched(model, X, handle=lambda site, tensor: tensor * 1) == ["inner leave 0", "outer enter 0"]
    assert results == [True]


def test_no_hook_is_left_also_after_an_error():
    model = Doing(lambda m, x: m.inner(x))
    before = fingerprint(model)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        watched(model, torch.ones(3, 5))

    assert_untouched(before, model)


def test_calls_in_other_threads_are_left_alone():
    model = Doing(lambda m, x: m.inner(x))
    sites = []

    with Watch(model, lambda site, tensor: sites.append(site)).attached():
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()

    assert sites == []


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_hook"])
def test_a_hook_whose_handle_never_came_is_gone_too_and_hooks_of_others_stay(register, monkeypatch):
    model, original = Doing(lambda m, x: m.inner(x)), getattr(nn.Module, register)
    model.inner.register_forward_pre_hook(partial(print, "before"))
    model.inner.register_forward_hook(lambda module, args, out: None)
    before = fingerprint(model)

    def interrupted(module, hook, **options):
        original(module, hook, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(nn.Module, register, interrupted)
    with pytest.raises(KeyboardInterrupt):
        watched(model, X)

    assert_untouched(before, model)
    assert not model.inner._forward_pre_hooks_with_kwargs
    assert len(model.inner._forward_pre_hooks) == len(model.inner._forward_hooks) == 1


def test_a_mark_that_is_not_watched_hands_on_what_was_marked():
    model = Doing(lambda m, x: m.outer(dg.cut(dg.cut(m.inner(x), "one") * 2, "two")))
    handed = []

    assert watched(model, X, places={("two", "mark")}, handle=lambda _, t: handed.append(t) or t) == ["two mark 0"]
    assert torch.equal(handed[0], model.inner(X) * 2)
