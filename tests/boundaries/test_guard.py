"""The guard: when a part below a cut learns, what is told of it, and that it is kept."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import BATCH, CLASSES, WIDTH, boundary, drop_in, part_by_part, says, step, train
from torch import nn

import dnigraph as dg
from dnigraph.boundaries.guard import CLOSES, FADE, OPENS, Guard
from dnigraph.heads.layers import GAIN

GUARDED = dg.dni()


class Knows(nn.Module):
    """A head that says a share of the target that it is told of, and so much noise."""

    def __init__(self, share, noise=0.0):
        super().__init__()
        self.share, self.noise, self.offset, self.coming = share, noise, 0.0, None
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, value):
        if self.coming is None:
            return 0 * value + self.weight
        said = self.coming * self.share + self.noise * torch.randn_like(self.coming) + self.offset
        return said + self.weight - self.weight.detach()


def heard(crossing, visits, target=lambda: torch.randn(BATCH, WIDTH), value=lambda: torch.randn(BATCH, WIDTH)):
    """Whether the producer got anything, by visit. The head is told of the target, in its own units."""
    got = []
    for _ in range(visits):
        gradient = target()
        known = crossing.head.module
        if isinstance(known, Knows):
            scale = (
                float(crossing.scale())
                if crossing.scale.mean_square
                else float(gradient.square().mean().sqrt()) * BATCH
            )
            known.coming = gradient * (BATCH / (GAIN * scale))
        got.append(bool(step(crossing, value(), gradient).any()))
    return got


def knowing(share, noise=0.0, choice=GUARDED):
    return boundary(choice, head=lambda spec: Knows(share, noise))


def test_a_part_stands_still_until_its_estimates_have_explained_what_came_after_them():
    got = heard(knowing(1.0), 40)

    assert not any(got[:6]) and all(got[12:])


@pytest.mark.parametrize(("share", "noise"), [(0.0, 0.0), (0.0, 0.3), (-1.0, 0.0), (2.0, 0.0), (0.1, 0.0)])
def test_below_an_estimate_that_explains_nothing_nothing_moves(share, noise):
    assert not any(heard(knowing(share, noise), 100))


def test_without_a_guard_the_estimate_is_followed_from_the_first_visit_on():
    assert all(heard(knowing(-1.0, choice=dg.dni(guard=False)), 5))


def test_a_part_that_was_closed_opens_again_and_one_that_was_open_closes():
    crossing = knowing(1.0)
    assert heard(crossing, 30)[-1]

    crossing.head.module.share = -1.0
    assert not any(heard(crossing, 60)[30:])

    crossing.head.module.share = 0.9
    assert all(heard(crossing, 60)[45:])


def test_one_odd_batch_closes_nothing():
    crossing = knowing(1.0)
    heard(crossing, 60)
    crossing.head.module.share = -100.0
    heard(crossing, 1)
    crossing.head.module.share = 1.0

    assert all(heard(crossing, 10))


def test_an_estimate_must_explain_what_the_weights_get_and_not_the_samples_alone():
    """The gradients of the samples nearly cancel each other; the head knows them, and not what is left of them."""

    def target():
        one = torch.randn(BATCH // 2, WIDTH)
        return torch.cat((one, -one)) + 0.1 * torch.randn(BATCH, WIDTH)

    def same():
        one = torch.randn(BATCH // 2, WIDTH)
        return torch.cat((one, one))

    alone = boundary(GUARDED, head=lambda spec: Knows(1.0))
    alone.head.module.offset = 0.15

    assert not any(heard(alone, 60, target, same))
    measured = alone.metrics()
    assert measured["explained"] > 0.5 and measured["explained_weights"] < 0.0 and measured["open"] == 0
    assert all(heard(alone, 120, lambda: torch.randn(BATCH, WIDTH) + 1.0)[90:])


def test_the_limits_leave_a_gap_so_that_a_guard_does_not_flutter():
    guard = Guard(maps=False)
    assert all(opens > closes > 0 for opens, closes in zip(OPENS, CLOSES, strict=True))

    between = [(a + b) / 2 for a, b in zip(OPENS, CLOSES, strict=True)]
    for opened in (True, False):
        guard.set(opened)
        guard.missed.copy_(1 - torch.tensor(between))
        guard._decide(1)
        assert guard.open == opened


@pytest.mark.parametrize("size", [float("nan"), float("inf")])
def test_a_target_of_no_size_says_nothing_of_the_estimate(size):
    crossing = knowing(1.0)
    heard(crossing, 30)
    before = crossing.guard.missed.clone()

    step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), size))

    assert crossing.guard.missed.equal(before) and crossing.guard.open


@pytest.mark.parametrize("nothing", [None, torch.zeros(BATCH, WIDTH)])
def test_a_target_that_never_comes_closes_the_guard_within_a_few_visits(nothing):
    crossing = knowing(1.0)
    heard(crossing, 60)

    visit = crossing.visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1, crossing.context.seen)
    visit.settle(nothing)

    assert crossing.guard.open and crossing.metrics()["explained"] == pytest.approx(FADE, abs=0.05)
    for _ in range(8):
        visit.settle(nothing)
    assert not crossing.guard.open


def test_in_a_chain_the_guards_open_from_the_loss_downwards():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    x = torch.randn(64, 6)
    y = (x[:, :3] + x[:, 3:]).argmax(1)
    dm = dg.decouple(model, ["1", "3"], (x,), condition=dg.one_hot(3), boundary="dni")
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, 1e-3))
    before, first = model[0].weight.detach().clone(), {}

    for number in range(200):
        run.step(x, target=y)
        for name, crossing in dm.boundaries.items():
            if crossing.guard.open:
                first.setdefault(name, number)
        if "3" not in first:  # nobody below hears anything
            assert model[0].weight.equal(before) and dm.boundaries["1"].metrics() == {}

    assert 5 < first["3"] < first["1"] < 190
    assert not model[0].weight.equal(before)


def test_a_closed_guard_is_bitwise_silence_for_any_optimiser():
    def ended(boundary, make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        dm = dg.decouple(model, "1", (x,), boundary=boundary, condition=dg.one_hot(3))
        run = dg.Local(dm, loss=F.cross_entropy, optimizer=make)
        for _ in range(4):
            run.step(x, target=y)
        return model.state_dict()

    for make in (
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    ):
        guarded, silent, open_ = (ended(b, make) for b in ("dni", "silent", dg.dni(guard=False)))
        assert all(guarded[key].equal(silent[key]) for key in silent)
        assert not guarded["0.weight"].equal(open_["0.weight"])


def test_part_by_part_equals_drop_in_bitwise_while_guards_open_and_close():
    def net(run):
        made = train(run, GUARDED, 0)
        made.first.guard.missed.fill_(0.8)  # closes soon
        made.first.guard.set(True)
        made.second.guard.missed.fill_(0.0)  # opens with the first target
        return train(run, GUARDED, 20, net=made)

    one, other = net(drop_in), net(part_by_part)

    assert all(value.equal(other.state_dict()[name]) for name, value in one.state_dict().items())
    assert one.middle.weight.ne(train(drop_in, GUARDED, 0).middle.weight).any()


def test_a_guard_is_kept_in_a_checkpoint_and_goes_on_bitwise():
    torch.manual_seed(0)
    crossing, other = knowing(0.7, 0.05), knowing(0.7, 0.05)
    heard(crossing, 15)

    other.load_state_dict(copy.deepcopy(crossing.state_dict()))

    assert other.guard.open == crossing.guard.open
    for one in (crossing, other):
        torch.manual_seed(1)
        one.heard = heard(one, 10)
    assert crossing.heard == other.heard and crossing.guard.missed.equal(other.guard.missed)


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, WIDTH), (BATCH, 5, WIDTH), (BATCH, 40, 9, 9), (BATCH, 3, 4, 5, 2)])
def test_the_shares_of_values_of_any_shape_are_those_of_their_rows(shape):
    guard = Guard(maps=len(shape) > 3)
    target, value = torch.randn(shape), torch.randn(shape)

    guard.look(-0.5 * target, 0.5 * target, value, torch.linalg.vector_norm(target), 1)

    assert guard.missed.tolist() == pytest.approx([1 - 0.05 * 0.75] * 2, abs=1e-3)


def test_the_guard_stays_precise_in_a_model_of_half_precision_and_under_autocast():
    assert Guard(maps=False).half().missed.dtype == torch.float32

    plain, cast = Guard(maps=False), Guard(maps=False)
    error, target, value = (torch.randn(BATCH, WIDTH) for _ in range(3))
    for guard, enabled in ((plain, False), (cast, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            guard.look(error * 0.1, target + error * 0.1, value, torch.linalg.vector_norm(target), 1)
    assert plain.missed.equal(cast.missed) and plain.missed.ne(1).all()


def test_on_an_accelerator_it_decides_in_every_eighth_visit_and_reads_nothing_between(monkeypatch):
    monkeypatch.setattr(Guard, "_at_hand", property(lambda guard: False))
    crossing = knowing(1.0)

    got = heard(crossing, 40)
    crossing.guard.opened.fill_(False)  # on the device: it is looked at when it is loaded, or at the next decision

    assert got == sorted(got) and got.index(True) % 8 == 0 and crossing.guard.open
    crossing.load_state_dict(crossing.state_dict())
    assert not crossing.guard.open


def told(crossing, visits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        heard(crossing, visits)
    return [str(w.message) for w in caught if issubclass(w.category, dg.TrainingWarning)]


def test_a_part_that_stands_still_is_told_once_with_the_way_out():
    words = told(boundary(GUARDED, head=says(0.0)), 500)

    assert len(words) == 1
    assert "'layer2' explains 0% of the gradient" in words[0] and "dg.dni(guard=False)" in words[0]
    assert "condition=" in words[0] and "boundary='local-loss'" in words[0]


def test_a_part_that_moves_or_is_warmed_up_is_told_nothing():
    assert told(knowing(1.0), 300) == []
    assert told(boundary(dg.dni(warm_up=600), head=says(0.0)), 500) == []


def test_a_guard_is_true_or_false():
    with pytest.raises(dg.DniGraphError, match=r"guard='no' \(True, False, or None: on cuts, not on links"):
        dg.dni(guard="no")


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize(
    ("choice", "guarded"), [("dni", False), (dg.dni(guard=True), True), (dg.dni(guard=False), False)]
)
def test_a_link_that_is_wired_by_hand_is_guarded_where_that_is_asked_for(choice, guarded):
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 0.1))
    net.add("a", nn.Linear(6, WIDTH)).add("b", nn.Linear(WIDTH, CLASSES), loss=F.cross_entropy)
    net.connect("a.output", "b.input", boundary=choice)
    before = net.agents["a"].module.weight.clone()

    for _ in range(3):
        net.tick({"a.input": torch.randn(BATCH, 6)}, {"b": torch.arange(BATCH) % CLASSES})

    assert [boundary.guarded for boundary in net.boundaries.values()] == [guarded]
    assert net.agents["a"].module.weight.equal(before) == guarded


def test_the_plan_says_which_boundaries_are_guarded():
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    x = torch.randn(BATCH, 6)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guarded, free = (dg.decouple(copy.deepcopy(model), "1", x, boundary=b) for b in ("dni", dg.dni(guard=False)))

    assert [c.boundary for c in (*guarded.plan.crossings, *free.plan.crossings)] == ["dni (guarded)", "dni"]
    assert "dni (guarded)" in str(guarded.plan)


def test_a_probe_looks_at_the_estimate_also_where_the_guard_is_closed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    x, y = torch.randn(BATCH, 6), torch.randint(CLASSES, (BATCH,))
    dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(CLASSES), boundary="dni")
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, 1e-3))
    for _ in range(3):
        run.step(x, target=y)

    found = dg.probe(dm, x, target=y, loss=F.cross_entropy)

    assert found.crossings["1"] != 0 and found.weights["part_0"] != 0
    assert not dm.boundaries["1"].guard.open
