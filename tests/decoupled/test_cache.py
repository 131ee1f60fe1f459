"""Which graph is kept for which calls, and when graphs are forgotten."""

import copy
import random

import pytest
import torch
from kit.models import CLASSES, CONDITION, Chain, Skipping, X
from kit.side_by_side import Net, differences, x
from torch import nn
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

import dnigraph as dg
from dnigraph.decoupled import on_graphs
from dnigraph.decoupled.cache import PATHS, Cache, WaysWarning, _kind
from dnigraph.passes.graph.digest import LIMIT
from dnigraph.passes.plan.plan import DATA


@pytest.fixture
def captures(monkeypatch):
    """The calls of the capture ladder after the example's."""
    calls = []

    def counted(*args):
        calls.append(args)
        return capture(*args)

    capture = on_graphs.capture
    monkeypatch.setattr(on_graphs, "capture", counted)
    return calls


def test_that_no_graph_can_stand_for_a_kind_of_call_is_found_out_once(captures):
    class OnlyInEval(Skipping):
        def forward(self, x):
            return super().forward(x) * (1 if self.training else random.random())

    dm = dg.decouple(OnlyInEval(), "b", (X,), condition=CONDITION, check=False).eval()

    for _ in range(3):
        dm(X)
        dm.prepare(X)

    assert len(captures) == 1


def test_decouple_captures_both_modes_where_it_checks(captures):
    dm = dg.decouple(Chain(), "bn", (torch.randn(4, 6),), condition=CONDITION)

    dm.eval()(torch.randn(4, 6))

    assert len(captures) == 1  # that of eval mode; that of train mode is the example's


def test_each_kind_of_call_is_captured_once(captures):
    dm = dg.decouple(Skipping(), "b", (X,), boundary="oracle")
    captures.clear()

    for _ in range(2):
        dm(X)
        dm(X[:3])
        dm(X.clone().requires_grad_())
        with torch.no_grad():
            dm(X)

    assert len(captures) == 2  # an input that learns, and grad mode off; another batch size is the same kind


def test_a_replaced_module_makes_all_graphs_forgotten(captures):
    model = Skipping()
    dm = dg.decouple(model, "b", (X,), boundary="oracle")
    captures.clear()

    model.c = nn.Linear(4, CLASSES)

    assert torch.equal(dm(X), model(X))
    assert dm.c is model.c
    assert len(captures) == 1


def test_calls_are_told_apart_by_structure_type_and_plain_values():
    cache = Cache(nn.Linear(4, 4), whole_arguments=False)
    calls = [(X,), (X.double(),), (X, 1), (X, 2), ([X],), ({"x": X},), (X[0],)]

    cache.model.forward = lambda *args: None
    entries = [cache.find(args, {})[0] for args in calls]

    assert len({id(entry) for entry in entries}) == len(calls)
    assert all(cache.find(args, {})[0] is entry for args, entry in zip(calls, entries, strict=True))
    assert cache.find((X[:2],), {})[0] is entries[0]


# ---- ways through the code of a model


def one_way_for_each_length(net, v):
    h = v.new_zeros(len(v), 8)
    for t in range(v.shape[1]):
        h = net.c(net.a(v[:, t]) + h).relu()
    return h


def one_way_for_each_batch(net, v):
    return net.c(net.a(v / float(v.abs().max())).relu())


def _square():
    net = Net(one_way_for_each_length)
    net.c = nn.Linear(8, 8)
    return net


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (_square, [(x(4, k, 1 + k),) for k in range(15)] + [(x(4, 0, 1),), (x(4, 1, 3),)]),
        (lambda: Net(one_way_for_each_batch), [(x(4, k),) for k in range(16)]),
    ],
)
def test_more_ways_than_are_kept_are_captured_anew_and_told_once(make, calls):
    with pytest.warns(WaysWarning, match="ways through its code") as told:
        found, dm = differences(make, calls, quiet=False)

    assert found == [] and len(told.list) == 1
    assert len(list(dm._cache)) <= PATHS + 1


def test_a_number_that_changes_in_every_call_keeps_no_graph_for_each():
    def forward(net, v, alpha):
        return net.c(net.a(v).relu() * alpha)

    calls = [(x(4, k), 0.01 * k) for k in range(20)]
    with pytest.warns(WaysWarning, match=r"torch\.tensor") as told:
        found, dm = differences(lambda: Net(forward), calls, quiet=False)

    assert found == [] and len(told.list) == 1
    assert len(list(dm._cache)) <= PATHS + 2


def test_a_graph_that_looks_at_data_says_so_in_the_plan():
    _, dm = differences(lambda: Net(one_way_for_each_batch), [(x(),)])
    _, other = differences(lambda: Net(lambda net, v: net.c(net.a(v))), [(x(),)])

    assert "test_cache.py" in dm.plan.notes_of(DATA)[0]
    assert other.plan.notes == ()


# ---- sizes that depend on data


def by_packing(net, v, lengths):
    net.calls += 1
    packed = rnn.pack_padded_sequence(net.a(v), lengths, batch_first=True, enforce_sorted=False)
    h, _ = rnn.pad_packed_sequence(net.rnn(packed)[0], batch_first=True)
    return sum(net.c(h[:, t]) for t in range(h.shape[1]))


def by_range(net, v, lengths):
    net.calls += 1
    return sum(net.c(net.a(v[:, t])) for t in torch.arange(lengths.max()).tolist())


def by_slice(net, v, lengths):
    net.calls += 1
    h = net.a(v)[:, : lengths.max()]
    return sum(net.c(h[:, t]) for t in range(h.shape[1]))


def by_expansion(net, v, lengths):
    net.calls += 1
    more = net.a(v)[:, :1].expand(-1, lengths.max(), -1)
    return sum(net.c(more[:, t]) for t in range(more.shape[1]))


def by_sparse_values(net, v, lengths):
    net.calls += 1
    h = (lengths - 3).relu().to_sparse().values()
    return net.c(net.a(v)).sum() * sum(1.0 for _ in range(len(h)))


@pytest.mark.parametrize("forward", [by_packing, by_range, by_slice, by_expansion, by_sparse_values])
def test_a_size_that_depends_on_data_is_captured_anew_and_nothing_is_done_twice(forward):
    def make():
        net = Net(forward, rnn=nn.LSTM(8, 8, batch_first=True))
        net.register_buffer("calls", torch.zeros(()))
        return net

    lengths = [[6, 3, 2, 5], [4, 3, 2, 1], [6, 6, 2, 1], [4, 4, 4, 1]]
    found, _ = differences(make, [(x(4, k, 6), torch.tensor(one)) for k, one in enumerate(lengths)])

    assert found == []


def test_the_first_call_of_a_kind_may_be_inside_activation_checkpointing():
    torch.manual_seed(0)
    model = Net(lambda net, v: net.c(net.a(v).relu()))
    dm = dg.decouple(model, "a", (x(),), boundary="oracle")
    v = x().requires_grad_()  # another kind of call: captured now

    checkpoint(dm, v, use_reentrant=False).sum().backward()
    ours = v.grad
    v.grad = None
    model(v).sum().backward()

    assert torch.equal(ours, v.grad)


def test_a_copy_has_its_graphs_also_where_the_model_holds_objects_that_are_known_by_their_place():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    x = torch.randn(4, 3, 4)
    dm = dg.decouple(Rows(), "rnn", (x,), boundary="oracle")

    copied = copy.deepcopy(dm)

    assert copied(x).equal(dm(x))  # a capture anew would warn, and a warning is an error here


def test_an_argument_that_is_too_large_to_look_at_is_known_by_the_object_that_it_is():
    large, same = [[] for _ in range(LIMIT)], [[] for _ in range(LIMIT)]

    assert _kind(large) == _kind(large) and hash(_kind(large)) == hash(_kind(large))
    assert _kind(large) != _kind(same) and _kind(large)[0] is list
    assert _kind(large[1:]) == _kind(same[1:])  # as many as can be looked at
