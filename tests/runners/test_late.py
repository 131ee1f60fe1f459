"""`Local` with answers that come late."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.late import model, momentum, simulated
from kit.models import BOUNDARIES, ZOO, cut_up, labels, loss_of
from kit.networks import adam, batches, same, weights

import dnigraph as dg
from dnigraph.runners.late import LateSteps

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
SOME = ["all", "oracle", "a blended local loss", "silence"]
PLACES = [(m, b) for i, m in enumerate(ZOO) for j, b in enumerate(SOME) if (i + j) % 2 == 0]


def run_of(late, optimizer=momentum, **options):
    whole = model()
    dm = dg.decouple(whole, ["1", "3"], (torch.ones(8, 6),), **{"boundary": "oracle", **options})
    return dg.Local(dm, loss=F.cross_entropy, optimizer=optimizer, late=late), whole


@pytest.mark.parametrize("late", [1, 2, 3])
def test_it_equals_a_simulation_with_plain_lists_bitwise(late):
    ticks = list(batches(12))
    run, whole = run_of(late)

    losses = [run.step(x, target=y).loss for x, y in ticks]

    expected = simulated(late, ticks)
    assert same(weights(whole), weights(expected))
    assert len(losses) == 12 and all(torch.isfinite(loss) for loss in losses)


@pytest.mark.parametrize(("name", "boundary"), PLACES)
def test_at_no_delay_its_engine_does_bitwise_what_local_does(name, boundary):
    dm, args = cut_up(name, boundary=BOUNDARIES[boundary], check=False)
    other = copy.deepcopy(dm)
    schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)  # noqa: E731
    one, two = (dg.Local(m, loss=loss_of, optimizer=adam, scheduler=schedule, clip=0.5) for m in (dm, other))
    two._late = LateSteps(other, two._loss, two.updates, 0)

    for i in range(4):
        rows = torch.randperm(len(args[0]), generator=torch.Generator().manual_seed(i))[: len(args[0]) - i % 2]
        batch, y = [a[rows] for a in args], labels(len(rows))
        seen = []
        for run in (one, two):
            torch.manual_seed(i)
            result = run.step(*batch, target=y)
            seen.append((result.loss, result.output, result.metrics))
        assert torch.equal(seen[0][0], seen[1][0]) and seen[0][2] == seen[1][2]
        torch.testing.assert_close(vars(seen[0][1]) if hasattr(seen[0][1], "__dict__") and not isinstance(
            seen[0][1], torch.Tensor) else seen[0][1], vars(seen[1][1]) if hasattr(seen[1][1], "__dict__")
            and not isinstance(seen[1][1], torch.Tensor) else seen[1][1], rtol=0, atol=0)  # fmt: skip

    states = [[v for v in m.state_dict().values() if isinstance(v, torch.Tensor)] for m in (dm, other)]
    assert same(*states)


def test_steps_under_way_are_not_saved_silently_and_resume_bitwise_once_they_are_learned(tmp_path):
    ticks = list(batches(10))
    one, whole = run_of(2, adam)
    other, fresh = run_of(2, adam)
    for x, y in ticks[:5]:
        one.step(x, target=y)
    with pytest.raises(dg.CheckpointError, match=r"answers are under way.*run\.settle\(\)"):
        one.save(tmp_path / "run.pt")
    with pytest.raises(dg.CheckpointError, match="answers are under way"):
        one.optimizer().state_dict()  # what a trainer saves
    before = weights(whole[0])
    one.settle()
    assert not same(before, weights(whole[0]))
    one.save(tmp_path / "run.pt")

    other.step(*ticks[0][:1], target=ticks[0][1])  # what it has under way is forgotten
    other.load(tmp_path / "run.pt")
    for x, y in ticks[5:]:
        one.step(x, target=y)
        other.step(x, target=y)
    assert same(weights(whole), weights(fresh))


def test_a_loss_without_a_target_and_a_label_of_its_own_are_what_they_are_at_no_delay():
    whole = model()
    dm = dg.decouple(whole, ["1", "3"], (torch.ones(8, 6),), condition=dg.one_hot(3), boundary="dni")
    run = dg.Local(dm, loss=lambda output, _: output.square().mean(), optimizer=adam, late=1)
    heard = []
    for boundary in dm.boundaries.values():
        boundary.head.register_forward_pre_hook(lambda _, args: heard.append(args[1]))

    result = run.step(torch.ones(8, 6), label=torch.arange(8) % 3)

    assert result.output.shape == (8, 3) and not result.output.requires_grad
    assert heard and all(torch.equal(label, torch.arange(8) % 3) for label in heard)
    with pytest.raises(dg.ConditionError, match=r"look at the label: run the forward pass.*run\.step"):
        run.step(torch.ones(8, 6))


@pytest.mark.parametrize("late", [-1, 0.5, True])
def test_steps_that_are_none_are_refused(late):
    with pytest.raises(dg.DniGraphError, match=r"late=.* \(a whole number of steps from 0 on\)"):
        run_of(late)
