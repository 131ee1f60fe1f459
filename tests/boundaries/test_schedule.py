"""The true gradient in place of what any boundary says: at first, every so often, or as a share of it."""

import pytest
import torch
from kit.boundaries import BATCH, CLASSES, WIDTH, boundary, producer_gets_truth, step, train
from kit.boundaries import drop_in as as_one
from kit.boundaries import part_by_part as in_parts
from torch import nn

import dnigraph as dg
from dnigraph.boundaries import Boundary, Visit
from dnigraph.boundaries.schedule import Schedule

CONDITION = dg.one_hot(CLASSES)


class Doubles(Boundary):
    """Somebody's own boundary: twice the value, at once."""

    kind = "doubles"

    def visit(self, value, seen):
        return Visit((value,), (2 * value.detach(),), lambda target: (None,))


def doubles(spec, context, head):
    return Doubles(spec, context)


@pytest.mark.parametrize("choice", ["dni", "silent", doubles, "oracle"])
def test_any_boundary_waits_for_the_truth_at_first_and_every_so_often(choice):
    crossing = boundary(dg.refresh(dg.warm_up(choice, 2), 4))

    got = producer_gets_truth(crossing, 8)

    always = choice == "oracle"
    assert got == [True, True, always, True, always, always, always, True]
    assert crossing.may_wait and int(crossing.visits) == 8


def test_a_blend_is_that_share_of_the_truth_and_the_rest_of_its_own():
    value, truth = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)

    assert torch.allclose(step(boundary(dg.blend(doubles, 0.25)), value, truth), 0.25 * truth + 0.75 * 2 * value)
    assert torch.allclose(step(boundary(dg.blend("silent", 0.25)), value, truth), 0.25 * truth)
    assert torch.equal(step(boundary(dg.blend(doubles, 1.0)), value, truth), truth)


@pytest.mark.parametrize(("share", "left"), [(1.0, 0.0), (0.25, 0.75)])
def test_of_a_local_loss_that_share_is_left_to_the_producer_and_all_to_its_own_classifier(share, left):
    label, value, truth = torch.arange(BATCH) % CLASSES, torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    alone, blended = (boundary(choice) for choice in (dg.local_loss(CLASSES), dg.blend(dg.local_loss(CLASSES), share)))
    blended.load_state_dict({**alone.state_dict(), "visits": torch.tensor(0)})

    with alone.context.conditioned(label), blended.context.conditioned(label):
        own, mixed = step(alone, value, truth), step(blended, value, truth)

    torch.testing.assert_close(mixed, share * truth + left * own)
    for one, other in zip(alone.parameters(), blended.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


SCHEDULED = {
    "a warmed-up local loss": dg.warm_up(dg.local_loss(CLASSES), 5),
    "a blended local loss": dg.blend(dg.local_loss(CLASSES), 0.25),
    "all at once around one's own": dg.warm_up(dg.refresh(dg.blend(doubles, 0.5), 3), 4),
    "a refreshed silence": dg.refresh("silent", 3),
}


@pytest.mark.parametrize("choice", SCHEDULED.values(), ids=SCHEDULED)
def test_runners_agree_bitwise(choice):
    one, other = (train(run, choice, condition=CONDITION).state_dict() for run in (as_one, in_parts))

    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("option", [{"warm_up": 5}, {"refresh": 3}, {"blend": 0.5}, {"warm_up": 3, "blend": 0.1}])
def test_the_short_form_of_dni_is_the_same(option):
    choice = "dni"
    for name, value in option.items():
        choice = getattr(dg, name)(choice, value)

    one, other = (train(as_one, c, condition=CONDITION).state_dict() for c in (choice, dg.dni(**option)))

    assert all(torch.equal(one[key], other[key]) for key in one)


def test_schedules_go_into_each_other_and_the_outer_one_counts():
    crossing = boundary(dg.warm_up(dg.dni(warm_up=2, refresh=5), 9))

    assert crossing.schedule == Schedule(warm_up=9, refresh=5)
    assert crossing.all_settings() | {"warm_up": 9, "refresh": 5, "blend": 0.0} == crossing.all_settings()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dg.warm_up("dni", -1), r"warm_up: these options do not fit: warm_up=-1 \(a whole number"),
        (lambda: dg.refresh("dni", 1.5), r"refresh: these options do not fit: refresh=1\.5"),
        (lambda: dg.blend("dni", 2), r"blend=2 \(from 0, what the boundary says, to 1, backprop\)"),
        (lambda: dg.blend("dni", True), "blend=True"),
        (lambda: dg.silent(warm_up=True), "silent: these options do not fit: warm_up=True"),
        (lambda: dg.dni(warm_up=-1, decay=2), r"warm_up=-1 .*, decay=2"),
        (lambda: boundary(dg.warm_up("dnu", 3)), "there is no boundary 'dnu'; nearest: dni"),
    ],
)
def test_what_does_not_fit_is_told(make, words):
    with pytest.raises(dg.BoundaryError, match=words):
        make()


def test_a_boundary_without_a_schedule_counts_nothing_and_waits_as_it_says():
    plain = boundary(doubles)
    assert "visits" not in plain.state_dict() and plain.may_wait  # the safe default of one's own
    assert not boundary("dni").may_wait and not boundary("silent").may_wait
    assert isinstance(boundary(dg.warm_up(doubles, 0)), Doubles) and not boundary(dg.warm_up("dni", 0)).may_wait


def test_in_a_network_a_local_loss_warms_up_too():
    def made(choice):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        return dg.decouple(model, "1", (torch.ones(4, 6),), boundary=choice, condition=dg.one_hot(3))

    sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
    one, two = (made(dg.warm_up(dg.local_loss(3), 2)) for _ in range(2))
    local = dg.Local(one, loss=nn.functional.cross_entropy, optimizer=sgd)
    net = two.network(loss=nn.functional.cross_entropy, optimizer=sgd)
    for i in range(5):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(i))
        local.step(x, target=torch.tensor([0, 1, 2, 0]))
        net.tick(x, torch.tensor([0, 1, 2, 0]))

    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_visit_that_fails_is_none():
    crossing, value = boundary(dg.warm_up("dni", 2), condition=CONDITION), torch.randn(BATCH, WIDTH, requires_grad=True)
    with pytest.raises(dg.ConditionError):
        crossing.meet(value * 1)
    with crossing.context.conditioned(torch.arange(BATCH) % CLASSES):
        waiting = [crossing.meet(value * 1).now is None for _ in range(3)]

    assert waiting == [True, True, False] and int(crossing.visits) == 3


def test_a_warmed_up_local_loss_learns_at_the_end_of_an_episode_too():
    label, sums = torch.arange(4) % 3, []
    for choice in ("local-loss", dg.warm_up("local-loss", 1)):
        torch.manual_seed(0)
        net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 0.1)).add("a", nn.Linear(6, 6))
        net.add("b", nn.Linear(6, 3), loss=nn.functional.cross_entropy)
        net.connect("a.output", "b.input", delay=1, boundary=choice, condition=dg.one_hot(3))
        net.tick(torch.ones(4, 6), label, ends=True)
        before = net.agents["a"].module.weight.detach().clone()
        net.tick(torch.ones(4, 6), label, ends=True)  # nobody reads it
        sums.append(float((net.agents["a"].module.weight.detach() - before).abs().sum()))

    assert all(sums)
