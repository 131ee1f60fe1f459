"""Random models through everything: capture, cut, check, train."""

import copy

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dnigraph as dg

WIDTH, CLASSES = 4, 3


class Random(nn.Module):
    """A random graph of small steps. Each reads one or two earlier values; what nobody reads is summed at the end."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(self.layer(kind) for kind, _, _ in steps)
        self.top = nn.Linear(WIDTH, CLASSES)

    @staticmethod
    def layer(kind):
        made = {
            "linear": lambda: nn.Linear(WIDTH, WIDTH),
            "norm": lambda: nn.BatchNorm1d(WIDTH),
            "drop": lambda: nn.Dropout(0.3),
        }
        return made.get(kind, nn.Identity)()

    def forward(self, x):
        values, read = [x], set()
        for layer, (kind, i, j) in zip(self.layers, self.steps, strict=True):
            a, b = values[i % len(values)], values[j % len(values)]
            read |= {i % len(values), j % len(values)} if kind in ("add", "gate") else {i % len(values)}
            values.append(self.apply(kind, layer, a, b))
        return self.top(sum(v for k, v in enumerate(values) if k not in read))

    @staticmethod
    def apply(kind, layer, a, b):
        if kind == "add":
            return a + b
        if kind == "gate":
            return a * (b.detach() > 0)
        if kind == "in place":
            return (a * 1.0).mul_(0.5).relu_()
        if kind == "size":
            return a / a.shape[0]
        return layer(a)


KINDS = ["linear", "linear", "norm", "drop", "add", "gate", "in place", "size"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9)


@settings(max_examples=25)
@given(steps=STEPS, cuts=st.sets(st.integers(0, 8), min_size=1, max_size=3))
def test_random_graphs_stay_the_same_function_and_both_runners_agree(steps, cuts):
    torch.manual_seed(0)
    model, x, y = Random(steps), torch.randn(4, WIDTH), torch.tensor([0, 1, 2, 0])
    places = [f"layers.{i}" for i in cuts if i < len(steps) and steps[i][0] in ("linear", "norm")]
    try:
        dm = dg.decouple(model, places, (x,), condition=dg.one_hot(CLASSES))
    except dg.CutError:  # nothing that learns stands before or behind the place
        return
    other = copy.deepcopy(dm)
    optimizer = torch.optim.SGD(dm.parameters(), 0.1)
    torch.manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        with dm.conditioned(y):
            loss = F.cross_entropy(dm(x), y)
        loss.backward()
        optimizer.step()
    run = dg.Local(other, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    torch.manual_seed(1)
    for _ in range(3):
        run.step(x, target=y)

    one, two = dm.state_dict(), other.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one if isinstance(one[k], torch.Tensor))
    assert dg.check(dm, torch.randn(6, WIDTH)).right
