"""What a check finds out about a rewritten model, in its words."""

import pytest
import torch
from torch import nn

import dnigraph as dg

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
