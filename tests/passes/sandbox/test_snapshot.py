"""A way that was not taken leaves no trace: on weights, buffers, plain tensors, attributes, inputs, in no rung."""

import copy
import random

import pytest
import torch
from kit.replay import Doing, Net, assert_untouched, fingerprint
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.ladder import capture

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def goes_either_way(model, h):
    return model.outer(h) if h.mean() > 0 else model.outer(h * 2)


def shrinks_weights_at_the_end(model, x):
    y = model.outer(model.inner(x))
    with torch.no_grad():
        model.outer.weight.mul_(0.9)
    return y.detach() + model.inner(x)


def shrinks_weights(model, x):
    with torch.no_grad():
        model.outer.weight.mul_(0.9)
    return goes_either_way(model, model.inner(x))


def swaps_the_memory_of_weights(model, x):
    model.outer.weight.data = model.outer.weight.data * 0.9
    return goes_either_way(model, model.inner(x))


def writes_to_its_input(model, x):
    x.mul_(2)
    return goes_either_way(model, model.inner(x.clone())), x


def writes_to_a_plain_tensor(model, x):
    model.plain.mul_(1.5)
    return goes_either_way(model, model.inner(x) * model.plain)


def replaces_a_buffer(model, x):
    model.seen = model.seen + 1
    return goes_either_way(model, model.inner(x) * model.seen)


def sets_what_it_saw(model, x):
    model.last = model.inner(x).detach()
    return goes_either_way(model, model.inner(x))


WRITES = [
    shrinks_weights, swaps_the_memory_of_weights, writes_to_its_input, writes_to_a_plain_tensor, replaces_a_buffer,
    sets_what_it_saw,
]  # fmt: skip


def writing(function):
    torch.manual_seed(0)
    model = Doing(function)
    model.plain = torch.ones(4)
    model.register_buffer("seen", torch.zeros(()))
    return model


@pytest.mark.parametrize("function", WRITES)
def test_a_guard_that_misses_takes_back_what_was_written_before_it(function):
    model = writing(function)
    plain = copy.deepcopy(model)
    dm = dg.decouple(model, "inner", (X,), boundary="oracle", capture="record")
    batches = torch.randn(6, 3, 4)
    ways = {bool(plain.inner(x).mean() > 0) for x in batches}
    assert ways == {True, False}

    for x in batches:
        expected, found = plain(x.clone()), dm(x.clone())

        for one, other in zip(flat(expected), flat(found), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(plain.outer.weight, model.outer.weight)
        assert torch.equal(plain.plain, model.plain)
        assert torch.equal(plain.seen, model.seen)


@pytest.mark.parametrize("capture", ["record", "export", "hooks", "symbolic", "auto"])
@pytest.mark.parametrize("function", WRITES)
def test_decouple_leaves_a_model_that_writes_to_itself_as_it_was(function, capture):
    model = writing(function)
    before, kept = fingerprint(model), X.clone()
    weights, plain = model.outer.weight.detach().clone(), model.plain.clone()

    try:
        dg.decouple(model, "inner", (X,), boundary="oracle", capture=capture)
    except dg.DniGraphError:
        assert capture in ("export", "symbolic")

    assert_untouched(before, model)
    assert torch.equal(model.outer.weight, weights)
    assert torch.equal(model.plain, plain)
    assert torch.equal(X, kept)
    assert not hasattr(model, "last")


class Rescaling(nn.Module):
    """In eval mode its weights are smaller, and so nothing can be sent back from all results."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.small = False

    def forward(self, x):
        h = self.a(x)
        y = self.b(h)
        if self.small == self.training:
            with torch.no_grad():
                self.b.weight.mul_(2.0 if self.small else 0.5)
            self.small = not self.small
        return self.b(h), y


def test_a_model_that_writes_to_weights_that_were_read_is_run_whole_in_that_mode():
    torch.manual_seed(0)
    model = Rescaling()
    dm = dg.decouple(model, "a", (X,), boundary="oracle")
    dm.eval()

    plain = copy.deepcopy(model)
    for found, expected in zip(dm(X), plain(X), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(plain.b.weight, model.b.weight)


def test_a_check_knows_what_a_forward_writes_to_weights():
    model = writing(shrinks_weights_at_the_end)
    dm = dg.decouple(model, "inner", (X,), boundary="oracle", capture="record", check=False)
    write = next(n for p in dm.parts.values() for n in p.graph.nodes if n.name == "mul")
    write.args = (write.args[0], 0.8)  # spoilt: only the weight afterwards shows it, for nobody reads it any more
    for part in dm.parts.values():
        part.recompile()

    with pytest.raises(dg.CheckError, match=r"outer\.weight"):
        dg.check(dm, X)


def flat(value):
    return list(value) if isinstance(value, tuple) else [value]


def test_hooks_that_a_forward_puts_on_weights_go_with_the_capture_that_ran_it():
    class Hooking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            self.fc.weight.register_hook(lambda g: g * 0.5)
            raise ValueError("midway")

    model = Hooking()

    with pytest.raises(dg.CaptureError, match="midway"):
        dg.decouple(model, "fc", (torch.randn(3, 4),))

    model.fc(torch.ones(1, 4)).sum().backward()
    assert model.fc.weight.grad.eq(1).all()


def test_a_capture_leaves_gradients_flags_and_pending_graphs_alone():
    model = Net(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model(X).sum().backward()
    pending = model(X)
    model.body[2].eval()
    before = fingerprint(model)

    capture(model, (X,), {}, "record")

    assert_untouched(before, model)
    pending.sum().backward()


def test_a_failed_capture_leaves_no_trace_either():
    def spoils_everything(model, x):
        model.seen = model.seen + 1
        model.new = x
        model.log.append(1)
        model.inner.weight.data = model.inner.weight.data * 2
        model.outer.weight.requires_grad_(False)
        model.outer.eval()
        model.register_forward_hook(lambda *_: None)
        random.random()
        torch.rand(1)
        raise LookupError

    model = Doing(spoils_everything)
    model.log = []
    before = fingerprint(model)

    with pytest.raises(LookupError):
        capture(model, (X,), {})

    assert_untouched(before, model)
