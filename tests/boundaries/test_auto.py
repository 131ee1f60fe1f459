"""What "auto" chooses for a crossing, and the loss that it chooses for a label."""

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import BATCH, CLASSES, WIDTH, boundary
from torch import nn

import dnigraph as dg
from dnigraph.boundaries.local_loss import suited
from dnigraph.heads.conditions import Context, embedded, one_hot


class Encoder(nn.Module):
    width = 4

    def forward(self, label):
        return label.float().unsqueeze(-1).expand(-1, self.width)


@pytest.mark.parametrize(
    ("condition", "head", "kind", "title"),
    [
        (one_hot(CLASSES), "auto", "local-loss", "local-loss (auto)"),
        (embedded(CLASSES, 4), "auto", "local-loss", "local-loss (auto)"),
        (one_hot(CLASSES), "linear", "dni", "dni (auto, guarded)"),
        (lambda spec: Encoder(), "auto", "dni", "dni (auto, guarded)"),
        (None, "auto", "dni", "dni (auto, guarded)"),
    ],
)
def test_what_is_to_be_had_decides(condition, head, kind, title):
    made = boundary("auto", head, condition=condition)

    assert (made.kind, made.title) == (kind, title)
    assert kind == "local-loss" or made.guard is not None


def test_the_plan_and_the_metrics_say_what_was_chosen():
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    x, y = torch.randn(BATCH, 6), torch.randint(CLASSES, (BATCH,))
    dm = dg.decouple(model, "1", (x,), condition=one_hot(CLASSES), boundary="auto")

    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, 1e-3))

    assert "local-loss (auto)" in str(dm.plan)
    assert set(run.step(x, target=y).metrics["1"]) == {"local_loss"}


def test_with_layers_behind_the_value_it_learns_through_copies_of_them():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(4)], nn.Linear(6, CLASSES))
    x = torch.randn(BATCH, 6)

    dm = dg.decouple(model, ["0", "3"], (x,), condition=one_hot(CLASSES), boundary="auto")

    assert [boundary.title for boundary in dm.boundaries.values()] == ["auglocal (auto)", "local-loss (auto)"]
    assert dm.boundaries["0"].head_name.startswith("1 + 3, ")
    on_hooks = dg.decouple(model, ["0"], (x,), condition=one_hot(CLASSES), boundary="auto", capture="hooks")
    assert on_hooks.boundaries["0"].title == "local-loss (auto)"


def test_with_an_option_of_schedules_it_is_what_was_chosen_behind_the_true_gradient():
    made = boundary(dg.warm_up("auto", 3), condition=one_hot(CLASSES))

    assert made.kind == "local-loss" and made.schedule.warm_up == 3


scores = torch.randn(BATCH, CLASSES)
classes = torch.arange(BATCH) % CLASSES


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (classes, F.cross_entropy(scores, classes)),
        (classes.int(), F.cross_entropy(scores, classes)),
        (F.one_hot(classes).double(), F.cross_entropy(scores, classes)),
        (classes[:, None].expand(-1, 5), F.cross_entropy(scores, classes)),  # positions that the scores do not have
        (classes[:, None, None].expand(-1, 2, 3), F.cross_entropy(scores, classes)),
        (scores + 1, torch.ones(())),  # numbers to regress on
        (scores.double() - 2, torch.full((), 4.0)),
        ((scores > 0).float() * 0, scores.square().mean()),  # several classes at once, here none
    ],
)
def test_the_loss_is_that_of_the_label(label, expected):
    assert float(suited(one_hot(CLASSES))(scores, label)) == pytest.approx(float(expected), rel=1e-5)


def test_entries_without_a_label_count_for_nothing():
    loss = suited(one_hot(CLASSES, ignore=255))
    partly = classes.clone()
    partly[3:] = 255

    assert loss(scores, partly).allclose(F.cross_entropy(scores[:3], classes[:3]))
    assert loss(scores, torch.stack((classes, torch.full_like(classes, 255)), 1)).allclose(
        F.cross_entropy(scores, classes)
    )
    assert loss(scores, torch.full((BATCH, 4), 255)) == 0


def test_one_number_to_regress_on():
    made, value = boundary("auto", condition=one_hot(1)), torch.randn(BATCH, WIDTH, requires_grad=True)
    context: Context = made.context

    with context.conditioned(torch.randn(BATCH)):
        (made(value * 1) ** 2).sum().backward()

    assert value.grad is not None and value.grad.any()
    assert set(made.metrics()) == {"local_loss"}


@pytest.mark.parametrize(
    ("shape", "label"),
    [((BATCH, WIDTH), (BATCH, 4, 4)), ((BATCH, 5, WIDTH), (BATCH, 7)), ((BATCH, WIDTH, 3, 3), (BATCH, 6, 6))],
)
def test_a_label_of_other_positions_than_the_value_fits_as_well(shape, label):
    made, value = boundary("auto", shape=shape, condition=one_hot(CLASSES)), torch.randn(shape, requires_grad=True)

    with made.context.conditioned(torch.randint(CLASSES, label)):
        made(value * 1).sum().backward()

    assert value.grad.any()
