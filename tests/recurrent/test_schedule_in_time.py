"""True gradients at windows' ends by a schedule: at first, every so often, as a share."""

import pytest
import torch
from kit.streams import LONG, Kept, Known, adam, data, gradients, made, mse, near, sgd, whole_gradients

import dnigraph as dg
from dnigraph.boundaries.scale import RunningScale


def pieces(rnn, x, y, lengths):
    """Gradients of backprop through pieces of so many windows, each from the state behind the one before, by hand."""
    total, state, begin = None, None, 0
    for length in lengths:
        end = begin + 3 * length
        hidden, state = rnn.core.advance(x[begin:end], state)
        loss = mse(rnn.core.read(hidden), y[begin:end]) * length
        found = torch.autograd.grad(loss, [*rnn.core.parameters()])
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        state, begin = tuple(t.detach() for t in state), end
    return total


@pytest.mark.parametrize(
    ("boundary", "lengths"),
    [
        (dg.warm_up("silent", 2), [3, 1]),  # nothing crosses the ends of windows 3 and 4
        (dg.warm_up("silent", 4), [4]),
        (dg.silent(refresh=2), [1, 2, 1]),  # windows 2 and 4 are refreshed
        (dg.refresh("silent", 3), [1, 1, 2]),
        (dg.warm_up(dg.refresh("silent", 3), 1), [2, 2]),
        ("silent", [1, 1, 1, 1]),
        ("bptt", [4]),
    ],
)
def test_true_gradients_cross_the_windows_ends_that_the_schedule_names(boundary, lengths):
    rnn = made(boundary=boundary, optimizer=(kept := Kept()))
    x, y = data()

    found = gradients(rnn, kept, x, y)

    assert near(found, pieces(rnn, x, y, lengths))


def test_a_share_of_the_true_gradient_without_a_head_fades_from_window_to_window():
    rnn = made(boundary=dg.blend("silent", 0.5), optimizer=(kept := Kept()))
    x, y = data()
    exact, alone = whole_gradients(rnn, x, y), pieces(rnn, x, y, [1, 1, 1, 1])

    found = gradients(rnn, kept, x, y)

    def apart(one, other):
        return sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5

    exact = [g * (LONG / 3) for g in exact]
    assert 0 < apart(found, alone) < apart(exact, alone) and 0 < apart(found, exact) < apart(exact, alone)


def test_after_a_warm_up_a_run_is_what_it_is_without_one(monkeypatch):
    monkeypatch.setattr(RunningScale, "forward", lambda self: 1.0)  # the targets' size is another one in the warm-up
    x, y = data()
    known, kept, other = (lambda spec: Known(torch.ones_like)), Kept(), Kept()
    head = dg.dni_in_time(centre=False, cap=0.3, scale=1.0, discount=1.0)
    warm = made(boundary=dg.warm_up(head, 4), head=known, optimizer={"core": kept, "heads": sgd})
    plain = made(boundary=head, head=known, optimizer={"core": other, "heads": sgd})
    exact = whole_gradients(warm, x, y)

    for rnn in (warm, plain):
        rnn.run(x, y)
        rnn.run(x, y)

    assert near(kept.found[0], exact, LONG / 3)
    assert len(kept.found) == 5 and all(near(a, b) for a, b in zip(kept.found[1:], other.found[4:], strict=True))


def test_a_window_behind_a_stored_one_waits_with_it():
    rnn = made(boundary=dg.refresh("dni", 2), optimizer=adam)
    x, y = data()

    updates = []
    for begin in range(0, LONG, 3):
        before = [p.detach().clone() for p in rnn.core.parameters()]
        rnn.step(x[begin : begin + 3], y[begin : begin + 3], ends=begin + 3 == LONG)
        updates.append(not all(map(torch.equal, before, rnn.core.parameters())))

    assert updates == [True, False, False, True]
