"""Side effects of a forward: replayed, or refused with the reason."""

import numpy as np
import pytest
import torch
from kit.replay import Doing, assert_refused, judge
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.capture.record.side_effects import refuse_changed_containers, refuse_exported
from dnigraph.passes.errors import CaptureError, StatefulModelError
from dnigraph.passes.graph.pytrees import flatten
from dnigraph.passes.sandbox.snapshot import Change, Kind

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def writes_a_parameter(model, x):
    with torch.no_grad():
        model.inner.bias.add_(0.1)
    return model.inner(x)


def counts_in_a_buffer(model, x):
    model.seen += 1
    return model.inner(x) * model.seen


def replaces_a_buffer(model, x):
    model.seen = model.seen + 1
    return model.inner(x) * model.seen


def keeps_an_auxiliary_loss(model, x):
    y = model.inner(x)
    model.auxiliary = (y**2).mean()
    return model.outer(y) + model.auxiliary


def keeps_and_forgets(model, x):
    model.held = model.inner(x)
    y = model.outer(model.held)
    del model.held
    return y


@pytest.mark.parametrize(
    "function",
    [
        writes_a_parameter,
        counts_in_a_buffer,
        replaces_a_buffer,
        keeps_an_auxiliary_loss,
        keeps_and_forgets,
    ],
)
def test_replays_have_the_side_effects_of_the_model(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_a_replay_sets_the_attributes_that_the_model_sets():
    model = Doing(keeps_an_auxiliary_loss)
    graph = capture(model, (X,), {}, "record").module(model)

    assert not hasattr(model, "auxiliary")
    graph(X)
    model.auxiliary.backward()

    assert model.inner.weight.grad is not None


def counts(model, x):
    model.calls = getattr(model, "calls", 0) + 1
    return model.inner(x) * model.calls


def counts_and_branches_much_later(model, x):
    model.calls = getattr(model, "calls", 0) + 1
    return model.inner(x) * (2 if model.calls > 100 else 1)


def remembers_what_it_computed(model, x):
    before, model.state = getattr(model, "state", 0.0), model.inner(x).mean(0).detach()
    return model.outer(x) + before


def remembers_its_last_input(model, x):
    before, model.last = getattr(model, "last", x), x.detach().mean(0)
    return model.inner(x) + before


def keeps_a_log(model, x):
    model.__dict__.setdefault("log", []).append(x.mean().item())
    return model.inner(x)


def reads_a_log(model, x):
    log = model.__dict__.setdefault("log", [x.detach()])
    log.append(x.detach().mean(0))
    return model.inner(x) + log.pop(0)


@pytest.mark.parametrize(
    "function, why",
    [
        (counts, "'calls' of the model changes with every call"),
        (counts_and_branches_much_later, "'calls' of the model changes with every call"),
        (remembers_what_it_computed, "no function of the inputs|than the model"),
        (remembers_its_last_input, "no function of the inputs|than the model"),
        (keeps_a_log, "a list of 1 things in the model has 2 after a call"),
        (reads_a_log, "no function of the inputs|than the model|state kept"),
    ],
)
def test_state_between_calls_is_refused_with_the_reason(function, why):
    assert_refused(Doing(function), X, why=why)


def test_a_buffer_that_a_forward_registers_is_registered_by_replays():
    def registers_a_table(model, x):
        if not hasattr(model, "table"):
            model.register_buffer("table", torch.arange(4.0), persistent=False)
        return model.inner(x) + model.table

    model = Doing(registers_a_table)
    graph = capture(model, (X,), {}, "record").module(model)
    assert not hasattr(model, "table")

    graph(X)

    assert torch.equal(model.table, torch.arange(4.0))
    assert "table" not in model.state_dict()


def test_a_table_in_a_buffer_is_made_to_the_inputs_size():
    def makes_its_table_fit(model, x):
        if model.seen.shape != x.shape[1:]:
            model.seen = torch.arange(float(x.shape[1]))
        return model.inner(x) + model.seen

    model = Doing(makes_its_table_fit)
    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
    verdict.captured.module(model)(X)
    assert torch.equal(model.seen, torch.arange(4.0))


def test_a_buffer_that_every_run_registers_anew_is_of_the_last_run():
    class Last(nn.Module):
        def forward(self, x):
            self.register_buffer("last", x.detach() * 2)
            return x + 1

    model = Last()
    dm = dg.decouple(model, [], (torch.randn(3, 4),))

    for rows in (5, 2):
        x = torch.randn(rows, 4)
        dm(x)

    assert torch.equal(model.last, x * 2)


class Appending(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, cache):
        y = self.one(x) if not cache else self.one(x) + cache[-1]
        cache.append(y.detach())
        return self.two(y)


def test_a_container_of_the_caller_that_the_model_fills_is_no_result_of_a_graph():
    with pytest.raises(CaptureError, match=r"puts something else into .*, a container that belongs to the caller"):
        capture(Appending(), (X, [X]), {})


def test_a_model_that_fills_what_it_is_given_fills_it_also_when_it_is_decoupled():
    model = Appending()
    dm = dg.decouple(model, "one", (X, [X]), head="linear", condition=dg.one_hot(3))
    given, expected = [X], [X]

    results = [dm(X, given), dm(X, given)]

    assert all(torch.equal(a, model(X, expected)) for a in results)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert dm.plan.capture == "hooks"


def test_a_tensor_that_no_name_leads_to_is_not_written_in_every_call():
    def counts_in_a_list(model, x):
        model.counts[0].add_(1)
        return model.inner(x) * model.counts[0]

    model = Doing(counts_in_a_list)
    model.counts = [torch.zeros(4)]

    assert_refused(
        model, X, why=r"a tensor of shape \(4,\) that the model made in its first call is written in every call"
    )
    assert model.counts[0].eq(0).all()


def test_a_tensor_that_only_a_hook_writes_to_is_written_by_the_hook_in_every_replay():
    model = Doing(lambda model, x: model.outer(model.inner(x)))
    model.counts = [torch.zeros(4)]
    model.inner.register_forward_hook(lambda module, args, out: [model.counts[0].add_(1)].clear())

    graph = capture(model, (X,), {}, "record").module(model)

    assert model.counts[0].eq(0).all()
    graph(X), graph(X)
    assert model.counts[0].eq(2).all()


def replaces_a_buffer_by_a_longer_one(model, x):
    model.outer(x * model.seen)
    model.seen = torch.ones(2)
    return model.inner(x)


def replaces_a_buffer_by_another_type(model, x):
    y = model.inner(x) * model.seen
    model.seen = model.seen.double()
    return y


@pytest.mark.parametrize("function", [replaces_a_buffer_by_a_longer_one, replaces_a_buffer_by_another_type])
def test_a_buffer_that_was_read_and_is_another_shape_or_type_now_is_refused_by_name(function):
    model = Doing(function)

    assert_refused(model, X, why="buffer 'seen' is replaced by one of another shape or type")


def changes_a_number_outside(model, x):
    OUTSIDE["calls"] += 1
    return model.inner(x)


def fills_a_list_outside(model, x):
    OUTSIDE["list"].append(1)
    return model.inner(x)


OUTSIDE = {"calls": 10**9, "list": []}


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (changes_a_number_outside, "a dict of 2 things outside of the model changes with every call"),
        (fills_a_list_outside, "a list of 1 things outside of the model changes with every call"),
    ],
)
def test_a_container_outside_of_the_model_that_each_call_changes_is_refused_and_put_back(function, why):
    assert_refused(Doing(function), X, why=why)
    assert OUTSIDE == {"calls": 10**9, "list": []}


@pytest.mark.parametrize(
    ("kind", "old", "new", "why"),
    [
        (Kind.GENERATOR, None, None, "draws from a random number generator of its own"),
        (Kind.VARIABLE, 1, 2, "'n', a variable outside of the model, changes with every call"),
        (Kind.ATTRIBUTE, 1, 2, "the model sets 'n' in every call"),
        (Kind.ATTRIBUTE, "a", "b", "the model sets 'n' in every call"),
        (Kind.ATTRIBUTE, torch.ones(1), torch.ones(1), "the model sets 'n' in every call"),
        (Kind.ATTRIBUTE, np.ones(1), np.ones(1), "the model sets 'n' in every call"),
        (Kind.CONTAINER, [1], [1, 2], "collects things in a container in every call"),
        (Kind.ATTRIBUTE, 10**9, 10**9 + 0, None),
        (Kind.ATTRIBUTE, None, 1, None),
        (Kind.CONTAINER, [1], [2], None),
        (Kind.BUFFER, torch.ones(1), torch.ones(1), None),
        (Kind.TENSOR, None, None, None),
    ],
)
def test_an_export_is_refused_for_changes_that_it_does_not_make(kind, old, new, why):
    change = Change(kind, None, "n", old, new)

    if why is None:
        refuse_exported([change])
    else:
        with pytest.raises(CaptureError, match=why):
            refuse_exported([change])


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ([X], [X], None),
        ([X, 1], [X, 2], None),  # a number is no tensor, and is looked at elsewhere
        ([X], [X.clone()], "into 'x', a container"),
        ([X, X], [X, X.clone()], "into 'y', a container"),
        ([X], [X, X], "into one of its inputs, a container"),
        ([[X]], [(X,)], "into one of its inputs, a container"),
    ],
)
def test_other_tensors_in_what_the_caller_gave_are_refused(before, after, why):
    given, found = flatten(before), flatten(after)

    if why is None:
        refuse_changed_containers(given, found, ["x", "y"])
    else:
        with pytest.raises(StatefulModelError, match=why):
            refuse_changed_containers(given, found, ["x", "y"])
