"""A way that was not taken leaves no trace: on weights, buffers, plain tensors, attributes, inputs, in no rung."""

import contextlib
import copy
import dataclasses
import random
import weakref

import numpy as np
import pytest
import torch
from kit.replay import Doing, Net, assert_untouched, fingerprint
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.sandbox import journal, rng
from dnigraph.passes.sandbox.snapshot import (
    ABSENT,
    Kind,
    Snapshot,
    fresh_copies,
    numbers_kept,
    taken_back,
    tensor_names,
    untouched,
)

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


class Steps:
    """An iterator that knows how many there are."""

    def __init__(self, *steps):
        self.limit, self._hidden, self._steps = len(steps), 1, iter(steps)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._steps)


def test_what_a_block_takes_from_an_iterator_of_the_model_comes_again_in_each_block_and_after_it_once():
    model = nn.Module()
    model.steps = Steps(1, 2, 3, 4, 5)

    with untouched(model):
        assert next(model.steps) == 1 and next(model.steps) == 2
        assert iter(model.steps) is model.steps
    with untouched(model):
        assert [next(model.steps) for _ in range(3)] == [1, 2, 3]
    assert [next(model.steps) for _ in range(2)] == [1, 2]
    with untouched(model):
        assert [next(model.steps) for _ in range(2)] == [3, 4]
    with untouched(model):
        assert list(model.steps) == [3, 4, 5]

    assert list(model.steps) == [3, 4, 5] and list(model.steps) == []


def test_an_iterator_that_nothing_is_taken_from_is_itself_again_and_in_between_looks_like_itself():
    model = nn.Module()
    model.steps = steps = Steps(1, 2)

    with untouched(model):
        assert model.steps is not steps and model.steps.limit == 2
        with pytest.raises(AttributeError, match="_hidden"):
            model.steps._hidden  # noqa: B018  # reading it is the test

    assert model.steps is steps


def test_what_an_iterator_gave_is_let_go_once_it_has_given_it_again():
    model = nn.Module()
    model.steps = (Steps(i) for i in range(3))
    with untouched(model):
        gone = [weakref.ref(next(model.steps)), weakref.ref(next(model.steps))]
    assert None not in [one() for one in gone]

    next(model.steps), next(model.steps)

    assert [one() for one in gone] == [None, None]
    assert next(model.steps)._hidden == 1


def test_hooks_on_saved_tensors_do_not_see_a_block_and_are_those_of_the_caller_after_it():
    outer, inner = [], []
    weight = torch.ones(2, requires_grad=True)

    def hooks(packed):
        return torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t, lambda t: t)

    with hooks(outer):
        with hooks(inner):
            with untouched(nn.Linear(2, 2)):
                weight**2
                hooks([]).__enter__()  # and never ended
            assert (outer, inner) == ([], [])
            weight**2
            assert (outer, inner) == ([], [1])
        weight**2
        assert (outer, inner) == ([1], [1])
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


class Changing(nn.Module):
    """Everything that a snapshot tells apart, and a function for each that changes it alone."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.note, self.log, self.table, self.marks = "a", [1], {"a": 1}, {1}
        self.dice, self.noise, self.array = random.Random(1), torch.Generator(), np.zeros(2)


CHANGES = {
    "another buffer": (Kind.BUFFER, "seen", lambda m: setattr(m, "seen", torch.ones(2))),
    "a new buffer": (Kind.BUFFER, "new", lambda m: m.register_buffer("new", torch.ones(2))),
    "a buffer that is gone": (Kind.BUFFER, "seen", lambda m: delattr(m, "seen")),
    "another attribute": (Kind.ATTRIBUTE, "note", lambda m: setattr(m, "note", "b")),
    "a new attribute": (Kind.ATTRIBUTE, "new", lambda m: setattr(m, "new", 1)),
    "an attribute that is gone": (Kind.ATTRIBUTE, "note", lambda m: delattr(m, "note")),
    "a longer list": (Kind.CONTAINER, None, lambda m: m.log.append(2)),
    "another item": (Kind.CONTAINER, None, lambda m: m.log.__setitem__(0, "x")),
    "an empty list": (Kind.CONTAINER, None, lambda m: m.log.clear()),
    "another value": (Kind.CONTAINER, None, lambda m: m.table.update(a="x")),
    "another key": (Kind.CONTAINER, None, lambda m: m.table.update(b=m.table.pop("a"))),
    "another mark": (Kind.CONTAINER, None, lambda m: m.marks.add("x")),
    "a parameter": (Kind.TENSOR, None, lambda m: m.fc.weight.detach().add_(1)),
}


def structure_of(model):
    tensors = [tensor.tolist() for tensor in model.state_dict().values()]
    draws = [rng.fingerprint(rng.state_of(generator)) for generator in (model.dice, model.noise)]
    plain = {key: value for key, value in vars(model).items() if isinstance(value, str | list | set | int)}
    return tensors, draws, str(sorted(plain.items())), str(model.table), model.array.tolist(), list(model._buffers)


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_seen_as_what_it_is_and_taken_back(what):
    model, (kind, name, change) = Changing(), CHANGES[what]
    before, snapshot = structure_of(model), Snapshot.of(model)
    assert list(snapshot.changes()) == []

    change(model)
    found = [(one.kind, one.name) for one in snapshot.changes() if one.holder is not model._buffers]

    assert found == [(kind, name)] and structure_of(model) != before
    snapshot.restore()
    assert structure_of(model) == before and list(snapshot.changes()) == []


def test_a_change_says_what_stood_there_and_what_stands_there_now():
    model = Changing()
    snapshot = Snapshot.of(model)

    model.note, model.new = "b", 1
    model.log.append(2)
    changes = list(snapshot.changes())

    assert [(c.holder is model, c.name, c.old, c.new) for c in changes[:2]] == [
        (True, "note", "a", "b"),
        (True, "new", ABSENT, 1),
    ]
    assert changes[2].holder is changes[2].new is model.log and changes[2].old == [1]


def test_draws_from_generators_of_the_models_own_are_seen_and_taken_back():
    model = Changing()
    before, snapshot = structure_of(model), Snapshot.of(model)
    assert list(snapshot.draws()) == []

    model.dice.random(), torch.rand(1, generator=model.noise), model.array.fill(7)

    assert [(c.kind, c.holder) for c in snapshot.draws()] == [
        (Kind.GENERATOR, model.dice),
        (Kind.GENERATOR, model.noise),
    ]
    snapshot.restore()
    assert structure_of(model) == before


def test_a_rewind_puts_numbers_back_and_leaves_what_the_model_made_for_itself():
    model = Changing()
    before, snapshot = structure_of(model), Snapshot.of(model)

    model.cache, model.seen = torch.ones(1), torch.ones(2)
    model.fc.weight.detach().add_(1)
    model.dice.random(), torch.rand(1)
    snapshot.rewind()

    assert hasattr(model, "cache") and structure_of(model)[:2] == before[:2]


@pytest.mark.parametrize(
    ("spoil", "counted", "other_numbers"),
    [
        (lambda t: t.add_(1), True, True),
        (lambda t: t.add_(0), True, False),
        (lambda t: t.data.add_(1), False, True),
        (lambda t: t.resize_(3), True, True),
        (lambda t: None, False, False),
    ],
    ids="written same_numbers past_the_counter resized untouched".split(),
)
def test_a_tensor_counts_as_written_by_its_version_or_by_its_numbers_alone(spoil, counted, other_numbers):
    model = nn.Module()
    model.plain = torch.ones(2)
    snapshot = Snapshot.of(model)

    spoil(model.plain)

    assert any(t is model.plain for t in snapshot.written()) is (counted or other_numbers)
    assert any(t is model.plain for t in snapshot.written(same_numbers=False)) is other_numbers


def test_a_tensor_is_put_back_with_its_memory_version_gradient_flag_and_hooks():
    model = nn.Linear(2, 2)
    weight, grad = model.weight, torch.ones(2, 2)
    weight.grad = grad
    weight.register_hook(lambda g: g * 2)
    saved = weight.sum() * weight.sum()
    data, version, numbers = weight.data_ptr(), weight._version, weight.tolist()

    with untouched(model):
        weight.register_hook(lambda g: g * 0)
        weight.grad.add_(1)
        weight.grad = None
        with torch.no_grad():
            weight.add_(1)
        weight.data = weight.data.clone()
        weight.requires_grad_(False)

    assert (weight.data_ptr(), weight._version, weight.tolist()) == (data, version, numbers)
    assert weight.grad is grad and grad.eq(1).all() and weight.requires_grad
    assert len(weight._backward_hooks) == 1
    saved.backward()
    assert weight.grad.eq(1 + 4 * weight.sum().detach()).all()


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_what_is_known_to_change_is_taken_back_after_an_error_or_always(always, fails):
    model = Changing()
    before = structure_of(model)

    with pytest.raises(LookupError) if fails else contextlib.nullcontext():
        with taken_back([model], [model.fc.weight], always):
            model.note, model.seen = "b", torch.ones(2)
            model.fc.weight.detach().add_(1)
            if fails:
                raise LookupError

    assert (structure_of(model) == before) is (always or fails)
    assert not journal._journal.open


def test_numbers_are_kept_over_a_block():
    x, y = torch.ones(2), torch.ones(2)

    with numbers_kept([x]):
        x.add_(1), y.add_(1)

    assert x.eq(1).all() and y.eq(2).all()


def test_copies_are_fresh_where_something_could_be_written_or_drawn():
    x, dice, noise = torch.ones(2, requires_grad=True), random.Random(1), torch.Generator()
    first, again, other, number, one, two = fresh_copies([x, x, torch.zeros(1), 3, dice, noise])

    assert first is again and first is not x and torch.equal(first, x) and first.requires_grad and first.is_leaf
    assert not other.requires_grad and number == 3
    assert (
        one is not dice and one.random() == random.Random(1).random() and dice.getstate() == random.Random(1).getstate()
    )
    assert two is not noise and torch.equal(two.get_state(), noise.get_state())


def test_each_tensor_of_a_model_has_the_path_where_it_is_found_first():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.plain = model[0].other = torch.ones(1)

    names = tensor_names(model)

    assert names[id(model.plain)] == "plain"
    assert names[id(model[0].weight)] == "0.weight" and names[id(model[0].running_mean)] == "0.running_mean"
    assert len(names) == 6


@pytest.mark.parametrize(
    "swap",
    [torch.t, lambda t: t[:1], lambda t: t[:, :1], torch.clone, torch.Tensor.double, lambda t: t.view(torch.int32)],
    ids="strides rows columns memory type view".split(),
)
def test_a_tensor_whose_memory_is_looked_at_in_another_way_gets_its_own_back(swap):
    model = nn.Module()
    model.plain = tensor = torch.arange(4.0).reshape(2, 2)
    data, shape, stride = tensor.data_ptr(), tensor.shape, tensor.stride()

    with untouched(model):
        tensor.data = swap(tensor.data)

    assert (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) == (data, shape, stride, torch.float32)
    assert tensor.tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_a_sparse_tensor_is_written_where_its_version_says_so_and_put_back():
    model = nn.Module()
    model.plain = torch.eye(2).to_sparse()
    snapshot = Snapshot.of(model)
    assert snapshot.written() == snapshot.written(same_numbers=False) == []

    model.plain.mul_(2)

    assert len(snapshot.written()) == len(snapshot.written(same_numbers=False)) == 1
    snapshot.restore()
    assert torch.equal(model.plain.to_dense(), torch.eye(2))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_gradients_and_weights_are_put_back(layout):
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(2).to_sparse(layout=layout))
    model.weight.grad = grad = torch.eye(2).to_sparse(layout=layout)

    with untouched(model):
        grad.mul_(3)
        model.weight.grad = None
        with torch.no_grad():
            model.weight.mul_(2)

    assert model.weight.grad is grad and torch.equal(grad.to_dense(), torch.eye(2))
    assert torch.equal(model.weight.detach().to_dense(), torch.eye(2))


def test_a_nan_that_stays_is_no_number_so_that_the_tensor_counts_as_written():
    model = nn.Module()
    model.plain = torch.tensor([float("nan")])

    assert len(Snapshot.of(model).written()) == 1  # as far as one can tell in little time


class Ramp:
    """A setting that its model raises in each call."""

    __slots__ = ("__weakref__", "gain", "later")

    def __init__(self):
        self.gain = [1.0]


class Open(Ramp):  # has attributes beside its slots
    def __init__(self):
        super().__init__()
        self.count = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    gain: float = 1.0


def test_slots_are_put_back():
    net, held = Net(nn.Linear(4, 4)), [Ramp(), Open(), Frozen()]
    net.settings = held
    gains = [one.gain for one in held]

    with untouched(net) as snapshot:
        for one in held:
            object.__setattr__(one, "gain", 3.0)
        held[0].later, held[1].count = 1, 1
        changes = {(type(c.holder).__name__, c.name): (c.old, c.new) for c in snapshot.changes()}

    assert changes[("Frozen", "gain")] == (1.0, 3.0) and changes[("Ramp", "later")] == (ABSENT, 1)
    assert changes[("Open", "count")] == (0, 1) and len(changes) == 5
    assert all(one.gain is gain for one, gain in zip(held, gains, strict=True))
    assert not hasattr(held[0], "later") and held[1].count == 0
    assert not any(snapshot.changes())


def test_what_stands_in_a_slot_is_looked_into():
    net = Net(nn.Linear(4, 4))
    net.settings = Ramp()

    with untouched(net):
        net.settings.gain.append(2.0)

    assert net.settings.gain == [1.0]
