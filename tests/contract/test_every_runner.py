"""What a runner is: whatever the model and the boundaries, it ends at bitwise the weights of every other runner.

The runs train, evaluate, are saved, and go on in a copy of the model with other weights.
"""

import copy

import pytest
import torch
from kit.models import BOUNDARIES, ZOO, cut_up, labels
from kit.runners import RUNNERS, flat

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
STEPS, SAVED = 5, 2


def batch(args, i):
    """The rows in another order in each step, and one less in every other."""
    order = torch.randperm(len(args[0]), generator=torch.Generator().manual_seed(i))[: len(args[0]) - i % 2]
    return [a[order] for a in args], labels(len(order))


def state(dm):
    return {key: value for key, value in dm.state_dict().items() if isinstance(value, torch.Tensor)}


def trained(run, args, steps):
    """The losses of the run in these steps, and what the model returns in eval mode meanwhile."""
    losses, evaluated = [], []
    for i in steps:
        torch.manual_seed(i)
        rows, y = batch(args, i)
        losses.append(run.step(rows, y))
        if i % 2:
            evaluated += flat(run.evaluate(rows))
    return losses, evaluated


def elsewhere(dm):
    """A copy of the model whose weights are others."""
    other = copy.deepcopy(dm)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    return other


def assert_bitwise(found, expected):
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(value, found[key])] == []


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("model", ZOO)
def test_all_runners_end_at_bitwise_the_same_weights_also_after_a_stop(model, boundary, tmp_path):
    dm, args = cut_up(model, boundary=BOUNDARIES[boundary], check=False)
    first = None

    for name, make in RUNNERS.items():
        if model in make.refused:
            continue
        run, fresh = make(copy.deepcopy(dm)), make(elsewhere(dm))
        before, evaluated = trained(run, args, range(SAVED))
        run.save(tmp_path / name)
        fresh.load(tmp_path / name)
        after, evaluated_after = trained(fresh, args, range(SAVED, STEPS))

        ended = {**state(fresh.dm), **{f"loss {i}": value for i, value in enumerate(before + after)}}
        first = first or (ended, evaluated + evaluated_after)
        assert_bitwise(ended, first[0])
        # a network evaluates without gradients, and some processors have another kernel of an LSTM for that
        torch.testing.assert_close(evaluated + evaluated_after, first[1], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, first[0][key]) for key, value in state(dm).items())


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_run_that_goes_on_is_bitwise_one_that_never_stopped(runner, tmp_path):
    dm, args = cut_up("chain", boundary=BOUNDARIES["all"])
    run, fresh = RUNNERS[runner](copy.deepcopy(dm)), RUNNERS[runner](elsewhere(dm))
    trained(run, args, range(SAVED))
    run.save(tmp_path / "run")
    fresh.load(tmp_path / "run")

    told = [
        [*losses, *evaluated] for losses, evaluated in (trained(o, args, range(SAVED, STEPS)) for o in (run, fresh))
    ]

    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))
    assert_bitwise(state(run.dm), state(fresh.dm))
