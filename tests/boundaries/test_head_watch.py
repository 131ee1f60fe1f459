"""What is told of heads that do not learn, and that nothing is told of those that do."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import boundary
from torch import nn

import dnigraph as dg
from dnigraph.boundaries.head_watch import STILL, STOPPED, HeadWatch, names, warn_frozen

LABELS = 4


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, LABELS))


def batch(size=16):
    x = torch.randn(size, 6)
    return x, x[:, :LABELS].argmax(1)


def halves(model, **options):
    return dg.decouple(model, ["1", "3"], (batch()[0],), condition=dg.one_hot(LABELS), **options)


def steps(dm, optimiser, count, micro=1, set_to_none=True):
    """Drop-in steps; returns the warnings of each."""
    told = []
    for _ in range(count):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimiser.zero_grad(set_to_none)
            for _ in range(micro):
                x, y = batch()
                with dm.conditioned(y):
                    loss = F.cross_entropy(dm(x), y) / micro
                loss.backward()
            optimiser.step()
        told.append([w for w in caught if issubclass(w.category, dg.TrainingWarning)])
    return told


@pytest.mark.parametrize("boundary", [dg.dni(guard=False), dg.local_loss(LABELS), dg.dni(warm_up=100)])
def test_an_optimiser_without_the_heads_is_told_once_in_its_first_steps(boundary):
    model = net()
    optimiser = torch.optim.Adam(model.parameters())

    told = steps(halves(model, boundary=boundary), optimiser, 12)

    assert sum(map(len, told[:4])) == 1 and sum(map(len, told)) == 1
    words = str(next(w for step in told for w in step).message)
    assert "'1', '3'" in words and "dm.parameters()" in words


def test_micro_batches_make_no_difference_to_what_is_told():
    model = net()
    dm = halves(model)

    assert sum(map(len, steps(dm, torch.optim.Adam(model.parameters()), 5, micro=4))) == 1


def test_heads_of_a_second_optimiser_made_later_without_them_are_told_of():
    dm = halves(net())
    assert not any(steps(dm, torch.optim.SGD(dm.parameters(), 0.05), 5))

    assert sum(map(len, steps(dm, torch.optim.SGD(dm.original.parameters(), 0.05), 70))) == 1


class Bare(torch.optim.Optimizer):
    """Writes to the data behind a parameter, which counts no version, as older optimisers do."""

    def __init__(self, params):
        super().__init__(list(params), {})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.05)


@pytest.mark.parametrize(
    ("make", "micro"),
    [
        (lambda dm: torch.optim.Adam(dm.parameters()), 1),
        (lambda dm: torch.optim.Adam(dm.parameters()), 5),
        (lambda dm: torch.optim.SGD(dm.parameters(), 0.05, foreach=True), 1),
        (lambda dm: Bare(dm.parameters()), 2),
    ],
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_healthy_training_is_told_nothing(make, micro, set_to_none):
    dm = halves(net())

    assert not any(steps(dm, make(dm), 20, micro, set_to_none))


def test_heads_with_an_optimiser_of_their_own_that_counts_no_version_are_told_nothing():
    dm = halves(net())
    heads = Bare(dm.head_parameters())
    optimiser = torch.optim.SGD(dm.original.parameters(), 0.05)
    optimiser.register_step_post_hook(lambda *_: heads.step())

    assert not any(steps(dm, optimiser, 10))


def test_evaluation_and_losses_without_an_update_are_told_nothing():
    dm = halves(net())
    x, y = batch()
    for _ in range(5):
        with dm.conditioned(y):
            F.cross_entropy(dm(x), y).backward()
        dm.eval()
        dm(x)
        dm.train()


def freeze(parameters):
    for parameter in parameters:
        parameter.requires_grad_(False)


def test_frozen_heads_are_told_at_the_first_call():
    dm = halves(net(), boundary="dni")
    freeze(dm.head_parameters())

    told = steps(dm, torch.optim.Adam(dm.original.parameters()), 20)

    assert [len(step) for step in told] == [1] + [0] * 19
    assert "frozen" in str(told[0][0].message) and "'1', '3'" in str(told[0][0].message)


def test_heads_that_are_frozen_later_are_told_of():
    dm = halves(net(), boundary="dni")
    optimiser = torch.optim.Adam(dm.parameters())
    steps(dm, optimiser, 3)
    freeze(dm.boundaries["3"].parameters())

    assert sum(map(len, steps(dm, optimiser, 40))) == 1


def test_frozen_heads_are_told_in_a_run():
    dm = halves(net(), boundary="dni")
    freeze(dm.boundaries["3"].parameters())

    with pytest.warns(dg.TrainingWarning, match="'3' are frozen"):
        run = dg.Local(dm, loss=F.cross_entropy, optimizer=torch.optim.AdamW)

    x, y = batch()
    run.step(x, target=y)


def test_a_frozen_model_with_its_heads_that_learn_is_told_nothing():
    dm = halves(net())
    freeze(dm.original[0].parameters())

    assert not any(steps(dm, torch.optim.Adam([p for p in dm.parameters() if p.requires_grad]), 10))


@pytest.mark.parametrize(
    ("count", "words"), [(1, "'0'"), (3, "'0', '1', '2'"), (4, "'0', '1', '2' and 1 more"), (0, "")]
)
def test_of_many_names_the_first_three_are_told(count, words):
    assert names(map(str, range(count))) == words


@pytest.mark.parametrize(
    ("moves", "learns", "at"), [(0, True, STILL), (1, True, STOPPED + 1), (3, True, STOPPED + 3), (0, False, None)]
)
def test_a_head_is_given_more_time_once_it_has_moved_and_all_of_it_where_it_had_nothing_to_learn(moves, learns, at):
    watch, model, crossing, told = HeadWatch(), nn.Linear(2, 2), boundary(), []

    for i in range(STOPPED + 8):
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            watch.look(model, {"1": crossing})
            model.weight.add_(1)
            if i < moves:
                next(crossing.parameters()).add_(1)
        crossing.settled += learns
        told += [i] * len(caught)

    assert told == ([] if at is None else [at])


def test_what_is_no_boundary_is_not_watched():
    watch, model = HeadWatch(), nn.Linear(2, 2)

    for _ in range(2 * STILL):
        watch.look(model, {"1": None, "2": nn.Linear(2, 2)})
        with torch.no_grad():
            model.weight.add_(1)


def test_of_frozen_boundaries_only_predicting_heads_are_told_of():
    head, classifier = boundary(), boundary(dg.local_loss(LABELS))
    freeze([*head.parameters(), *classifier.parameters()])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_frozen([classifier])  # it sends a gradient all the same
    with pytest.warns(dg.TrainingWarning, match="frozen"):
        warn_frozen([classifier, head])
