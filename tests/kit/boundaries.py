"""Boundaries on one crossing, heads that say what they are told, and two ways to run a small net with them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnigraph.boundaries import (
    Boundary,
    CrossingSpec,
    Visit,
    dni,
    local_loss,
    make_boundary,
    oracle,
    sum_in_order,
)
from dnigraph.heads.conditions import Context

BATCH, WIDTH, CLASSES = 8, 6, 3


UNGUARDED = dni(guard=False)  # its estimates are handed down from the first visit on


def boundary(
    choice=UNGUARDED, head="auto", shape=(BATCH, WIDTH), condition=None, context=None, dtype=torch.float32
) -> Boundary:
    spec = CrossingSpec("layer2", shape, dtype, torch.device("cpu"), condition)
    return make_boundary(choice, spec, context or Context(), head)


class Says(nn.Module):
    """A head that says the same for every sample, learns it, and counts how often it is asked."""

    def __init__(self, width=WIDTH, value=1.0):
        super().__init__()
        self.said = nn.Parameter(torch.full((width,), value))
        self.asked = 0
        self.heard: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        self.asked += self.training
        self.heard = value
        return self.said.expand_as(value)


def says(value=1.0):
    return lambda spec: Says(spec.shape[-1], value)


def step(crossing: Boundary, value: Tensor, gradient: Tensor | None = None) -> Tensor:
    """One drop-in step in which the consumer sends `gradient`; returns what the producer got."""
    value = value.detach().requires_grad_()
    passed = crossing(value * 1)
    passed.backward(torch.ones_like(value) if gradient is None else gradient)
    return torch.zeros_like(value) if value.grad is None else value.grad


class InOrder(torch.autograd.Function):
    """Plain backprop, with the order of summation written out."""

    @staticmethod
    def forward(ctx, value, consumers):
        return tuple(value.clone() for _ in range(consumers))

    @staticmethod
    def backward(ctx, *gradients):
        total = gradients[-1]
        for gradient in gradients[-2::-1]:
            total = total + gradient
        return total, None


class Nothing(torch.autograd.Function):
    """A consumer that sends no gradient back."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


def producer_gets_truth(crossing: Boundary, visits: int) -> list[bool]:
    truth = torch.randn(BATCH, WIDTH)
    return [step(crossing, torch.randn(BATCH, WIDTH), truth).equal(truth) for _ in range(visits)]


class Stack(nn.Module):
    """Three layers with a boundary after the first and the second; the second's consumers are two."""

    def __init__(self, choice, context, condition=None):
        super().__init__()
        self.lower, self.middle = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.upper, self.side = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        self.first = boundary(choice, condition=condition, context=context)
        self.second = boundary(choice, condition=condition, context=context)

    def loss(self, h, h_side, label):
        return F.cross_entropy(self.upper(h) + self.side(h_side), label)


def drop_in(net: Stack, x: Tensor, label: Tensor) -> None:
    h = net.first(net.lower(x).relu())
    net.loss(*net.second(net.middle(h).relu(), 2), label).backward()


def part_by_part(net: Stack, x: Tensor, label: Tensor) -> None:
    """Each part forward and, where its boundary allows it, backward, before the next part runs."""
    h1 = net.lower(x).relu()
    first = net.first.meet(h1)
    learn(first, first.now)
    received1 = h1.detach().requires_grad_()
    h2 = net.middle(received1).relu()
    second = net.second.meet(h2)
    learn(second, second.now)
    received2 = [h2.detach().requires_grad_() for _ in range(2)]
    net.loss(*received2, label).backward()
    learn(second, second.settle(sum_in_order([r.grad for r in received2])))
    learn(first, first.settle(received1.grad))


def learn(visit: Visit, gradients: tuple[Tensor | None, ...] | None) -> None:
    pairs = [(r, g) for r, g in zip(visit.roots, gradients or (), strict=gradients is not None) if g is not None]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))


def train(run, choice, steps=20, condition=None, accumulate=1, net=None, start=0):
    torch.manual_seed(0)
    context = Context()
    net = net or Stack(choice, context, condition)
    context = net.first.context
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    data = torch.Generator().manual_seed(1)
    for number in range(steps):
        x = torch.randn(BATCH, 4, generator=data)
        label = torch.randint(CLASSES, (BATCH,), generator=data)
        if number < start:
            continue
        with context.conditioned(label):
            run(net, x, label)
        if (number + 1) % accumulate == 0:
            optimiser.step()
            optimiser.zero_grad()
    return net


CHOICES = {
    "dni": UNGUARDED,
    "warm-up": dni(warm_up=5, guard=False),
    "refresh": dni(refresh=3, guard=False),
    "blend": dni(blend=0.5, guard=False),
    "replay": dni(replay=3, guard=False),
    "all": dni(warm_up=3, refresh=4, blend=0.1, replay=2),
    "oracle": oracle(),
    "local-loss": local_loss(classes=CLASSES),
}
