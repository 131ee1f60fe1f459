"""A decoupled model on graphs: gradients at the cuts, modes, moves, copies, other sizes."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, CONDITION, ZOO, Skipping, X, cut_up, decoupled_chain, labels, layers, loss_of
from torch import nn

import dnigraph as dg
from dnigraph.boundaries.dni import GAIN


class Says(nn.Module):
    """A head that always says the same."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, h):
        return torch.full_like(h, self.value)


def handed_to(seen):
    """A hook that keeps what the boundary hands down."""

    def hook(module, given):
        given[0].register_hook(lambda gradient: seen.append(gradient.clone()))

    return hook


@pytest.mark.parametrize("name", ZOO)
def test_heads_start_at_exactly_zero_and_move(name):
    dm, args = cut_up(name, check=False, boundary=dg.dni(guard=False))
    seen = []
    for boundary in dm.boundaries.values():
        boundary.register_forward_pre_hook(handed_to(seen))
    y = labels(len(args[0]))
    before = [p.clone() for p in dm.head_parameters()]

    optimizer = torch.optim.Adam(dm.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        with dm.conditioned(y):
            loss = loss_of(dm(*args), y)
        loss.backward()
        optimizer.step()

    assert any(not torch.equal(p, q) for p, q in zip(before, dm.head_parameters(), strict=True))
    assert any(g.ne(0).any() for g in seen)


def test_the_first_synthetic_gradient_is_exactly_zero():
    dm, x = decoupled_chain(boundary=dg.dni(guard=False))

    with dm.conditioned(labels(4)):
        F.cross_entropy(dm(x), labels(4)).backward()

    assert all(p.grad.eq(0).all() for p in dm.part_0.parameters())
    assert any(p.grad.ne(0).any() for p in dm.part_1.parameters())


def test_a_wrong_head_is_felt_below_the_cut_and_only_there():
    gradients = {}
    for value in (0.0, 1.0):
        dm, x = decoupled_chain(head=lambda spec, value=value: Says(value), boundary=dg.dni(guard=False))
        with dm.conditioned(labels(4)):
            F.cross_entropy(dm(x), labels(4)).backward()
        gradients[value] = {name: p.grad for name, p in dm.recouple().named_parameters()}

    for name, gradient in gradients[1.0].items():
        if name.startswith(("fc1", "bn")):
            assert gradients[0.0][name].eq(0).all()
        else:
            assert torch.equal(gradient, gradients[0.0][name]) and gradient.ne(0).any()
    assert torch.allclose(gradients[1.0]["bn.bias"], torch.tensor(float(GAIN)))  # from 4 samples, a quarter of it each


def test_the_forward_pass_needs_no_label_and_the_backward_pass_says_that_it_does():
    dm, x = decoupled_chain()

    loss = F.cross_entropy(dm(x), labels(4))

    with pytest.raises(dg.ConditionError, match="boundary 'bn' looks at the label"):
        loss.backward()


def test_train_and_eval_switch_the_graph_and_dropout():
    dm, args = cut_up("resnet")
    dm.eval()

    with torch.no_grad():
        assert torch.equal(dm(*args), dm(*args))
    assert not dm.recouple().training and not dm.layer1.training
    dm.train()
    assert not torch.equal(dm(*args), dm(*args))


def test_a_move_to_another_type_takes_parts_and_buffers_along():
    dm, args = cut_up("resnet", check=False)

    dm.double()

    assert dg.check(dm, *(a.double() for a in args)).right


def test_a_copy_learns_on_its_own():
    dm, x = decoupled_chain()
    other = copy.deepcopy(dm)

    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)

    assert torch.equal(dm.eval()(x), dm.recouple()(x))
    assert not torch.equal(dm(x), other.eval()(x))
    assert other.part_0.fc1.weight is other.recouple().fc1.weight


def test_drop_in_training_works_under_autocast_accumulation_and_with_compiled_parts():
    dm, x = decoupled_chain()
    for part in dm.parts.values():
        part.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(dm.parameters(), 0.1)
    before = [p.clone() for p in dm.parameters()]

    for _ in range(2):
        with dm.conditioned(labels(4)), torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(dm(x).float(), labels(4)) / 2
        loss.backward()
    optimizer.step()

    assert sum(not torch.equal(p, q) for p, q in zip(before, dm.parameters(), strict=True)) >= 4


def test_rows_that_are_no_batch_may_be_as_many_as_they_happen_to_be():
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 3)

        def forward(self, x, count):
            rows = self.below(x.repeat(count, 1, 1, 1))
            return self.above(torch.relu(rows)).mean()

    with pytest.warns(dg.UnconditionedWarning):
        dm = dg.decouple(Regions(), "below", (torch.randn(2, 1, 5, 5), 3), head="conv")

    dm(torch.randn(2, 1, 5, 5), 3).backward()
    dm(torch.randn(2, 1, 5, 5), 7).backward()

    assert dm.boundaries["below"].spec.shape == (6, 6, 5, 5)


@pytest.mark.parametrize("boundary", ["dni", "local-loss"])
def test_a_sequence_of_another_length_meets_the_same_head_also_behind_a_convolution(boundary):
    class Wave(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(2)

    wave = Wave(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, CLASSES, 3))
    dm = dg.decouple(wave, "1", (torch.randn(4, 2, 20),), condition=CONDITION, boundary=boundary)
    before = [p.detach().clone() for p in dm.head_parameters()]
    optimizer = torch.optim.Adam(dm.parameters(), 1e-2)

    for length in (20, 33, 9):
        with dm.conditioned(labels(4)):
            loss = F.cross_entropy(dm(torch.randn(4, 2, length)), labels(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert any(not torch.equal(p, b) for p, b in zip(dm.head_parameters(), before, strict=True))
    assert dm.boundaries["1"].spec.kind == "maps"


def test_numbers_that_stand_for_nothing_do_not_spoil_a_head():
    masked = torch.ones(4, 4, dtype=torch.bool).triu(1)
    model = layers(lambda m, x: m.b(m.a(x).masked_fill(masked, torch.finfo().min).softmax(-1)), "a", "b")
    x = torch.randn(4, 4)
    dm = dg.decouple(model, "masked_fill", (x,), condition=CONDITION, boundary=dg.dni(guard=False))

    for _ in range(2):
        with dm.conditioned(torch.tensor([0, 1, 2, 0])):
            dm(x).square().sum().backward()
        with torch.no_grad():
            [p.sub_(0.1 * p.grad) for p in dm.parameters()]

    assert all(bool(p.isfinite().all()) for p in dm.parameters())
    assert all(bool(b.isfinite().all()) for b in dm.boundaries["masked_fill"].buffers())


def test_in_eval_mode_a_call_that_no_graph_can_stand_for_runs_the_model():
    class OnlyInEval(Skipping):
        def forward(self, x):
            out = super().forward(x)
            return out if self.training or random.random() < 0.5 else out * 2

    model = OnlyInEval()
    dm = dg.decouple(model, "b", (X,), condition=dg.one_hot(CLASSES))
    dm.eval()

    assert dm.plan.capture == "record"
    for seed in range(6):
        random.seed(seed)
        expected = model(X)
        random.seed(seed)
        assert torch.equal(dm(X), expected)


def test_a_call_is_given_the_graph_of_its_own_way():
    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(h.relu() if x.sum() > 0 else h)

    x = torch.ones(2, 4)
    dm = dg.decouple(Signed(), "a", (x,), boundary="oracle", check=False)
    ways = {sign: dm.choose(sign * x)[0] for sign in (1, -1)}

    assert ways[1] is not ways[-1]
    for sign in (-1, 1, 1, -1):
        assert dm.choose(sign * x)[0] is ways[sign]
