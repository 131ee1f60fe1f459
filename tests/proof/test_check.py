"""What a check finds out about a rewritten model, in its words."""

import pytest
import torch
from kit.models import ZOO, cut_up, decoupled_chain, layers
from torch import nn

import dnigraph as dg
from dnigraph.proof.check import StandIn, _distance

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm, self.two = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(self.norm(self.one(x)).relu())


def decoupled():
    return dg.decouple(Chain(), "norm", (X,), boundary="oracle", check=False)


def edit(dm, change):
    """Change the nodes of all parts."""
    for part in dm.parts.values():
        for node in part.graph.nodes:
            change(part, node)
        part.recompile()


def test_a_right_model_is_found_right_in_both_modes_and_nothing_of_it_changes():
    dm = decoupled()
    dm(X).sum().backward()
    before = {name: p.grad.clone() for name, p in dm.named_parameters() if p.grad is not None}
    buffers = {name: b.clone() for name, b in dm.named_buffers()}

    report = dg.check(dm, X)

    assert report.right and report.worst == "nothing"
    assert {f.mode for f in report.findings} == {"train", "eval"}
    assert all(torch.equal(dict(dm.named_parameters())[name].grad, grad) for name, grad in before.items())
    assert all(torch.equal(dict(dm.named_buffers())[name], b) for name, b in buffers.items())


def test_other_results_are_told_with_their_distance_and_the_first_module_that_differs():
    dm = decoupled()
    dm.part_1._modules["two"] = nn.Linear(4, 4)

    with pytest.raises(dg.CheckError, match=r"BAD  outputs: apart by [0-9.e-]+; first at 'two', in part_1"):
        dg.check(dm, X)


def test_a_part_that_fails_is_a_finding_with_the_error():
    dm = decoupled()
    dm.part_1._modules["two"] = nn.Linear(3, 4)

    with pytest.raises(dg.CheckError, match="the model runs, its parts fail: RuntimeError") as caught:
        dg.check(dm, X)

    assert [f.what for f in caught.value.report.findings if f.mode == "train"] == ["run"]


def test_other_gradients_of_the_same_results_are_told_by_the_worst_parameter_and_its_part():
    def stops_gradients(part, node):
        if node.op == "call_module" and node.target == "two":
            with part.graph.inserting_before(node):
                node.args = (part.graph.call_method("detach", (node.args[0],)),)

    dm = decoupled()
    edit(dm, stops_gradients)

    with pytest.raises(dg.CheckError, match=r"oracle gradients: \d apart, most: (one|norm)\.\w+ by .* part_0"):
        dg.check(dm, X)


def test_random_numbers_that_are_drawn_beside_are_found():
    def draws(part, node):
        if node.op == "output":
            with part.graph.inserting_before(node):
                part.graph.call_function(torch.rand, (1,))

    dm = decoupled()
    edit(dm, draws)

    with pytest.raises(dg.CheckError, match="random numbers"):
        dg.check(dm, X)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_stays_the_same_function(name):
    dm, args = cut_up(name, check=False)

    report = dg.check(dm, *args)

    assert report.right
    assert {f.what for f in report.findings} >= {
        "outputs",
        "buffers",
        "random numbers",
        "oracle gradients",
        "separation",
    }


@pytest.mark.parametrize("name", ZOO)
def test_other_batch_sizes_are_right_too(name):
    dm, args = cut_up(name, check=False)

    for more in (1, 3):
        bigger = tuple(torch.cat([a, a[:more]]) for a in args)

        assert dg.check(dm, *bigger).right


def test_a_broken_rewrite_is_found_and_its_part_named():
    dm, x = decoupled_chain(check=False)
    dm.part_1._modules["fc2"] = nn.Linear(8, 8)

    with pytest.raises(dg.CheckError, match=r"first at .*part_1"):
        dg.check(dm, x)


def test_a_leak_past_a_cut_is_found():
    dm, x = decoupled_chain(check=False)
    top = dm.specialization.top
    node = next(n for n in top.graph.nodes if n.name.startswith("dni_"))
    node.replace_all_uses_with(node.args[0])
    top.graph.erase_node(node)
    top.recompile()

    with pytest.raises(dg.CheckError, match="leak past the cuts"):
        dg.check(dm, x)


class Own(torch.autograd.Function):
    """Adds a gradient of its own, as an auxiliary loss does that is hung onto a value."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 0.1


def test_a_gradient_that_a_part_makes_itself_is_no_leak():
    model = layers(lambda m, x: m.c(m.b(Own.apply(m.a(x)))), "a", "b", "c")

    dm = dg.decouple(model, "b", (torch.ones(2, 4),), boundary="oracle")

    assert dm.plan.capture == "record"


def test_what_cannot_be_sent_back_through_in_the_model_is_not_asked_of_its_parts():
    def forward(m, x):
        h = m.b(m.a(x).sigmoid()).sigmoid()
        y = m.c(h * 2)
        return y, h.mul_(0.5)  # sigmoid saved its result: no gradient comes back through it any more

    model = layers(forward, "a", "b", "c")

    dm = dg.decouple(model, "a", (torch.ones(2, 4),), boundary="oracle")

    assert dm.plan.capture == "record"
    assert dg.check(dm, torch.ones(2, 4)).right


def test_sparse_buffers_and_sparse_gradients_are_compared_too():
    model = layers(lambda m, x: m.b(torch.sparse.mm(m.edges, m.a(m.embedding(x)))), "a", "b")
    model.embedding = nn.Embedding(5, 4, sparse=True)
    model.register_buffer("edges", torch.eye(3).to_sparse())

    dm = dg.decouple(model, "a", (torch.tensor([0, 2, 2]),), boundary="oracle")

    assert dm.plan.capture == "record"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.ones(2), torch.tensor([1.0, 1.5]), 0.5),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(1), 1, float("inf")),
        (1, torch.ones(1), float("inf")),
        ("a", "a", 0.0),
        ("a", "b", float("inf")),
        (torch.ones(0), torch.ones(0), 0.0),
        (torch.ones(1, dtype=torch.cfloat), torch.ones(1, dtype=torch.cfloat), 0.0),
        (torch.ones(1, dtype=torch.cfloat), torch.ones(1, dtype=torch.cfloat) * 2, 1.0),
    ],
)
def test_how_far_two_results_lie_apart(one, other, expected):
    assert _distance(one, other) == expected


def test_a_stand_in_says_what_it_hands_back():
    assert repr(StandIn("zeros")) == "StandIn(zeros)"
