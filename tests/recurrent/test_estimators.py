"""What stands at a window's end: traces, BP(lambda), the auxiliary task, conditions, controls."""

import pytest
import torch
from kit.streams import BATCH, IN, WIDE, Kept, Known, adam, data, gradients, made, near, sgd, whole_gradients
from torch import nn

import dnigraph as dg


class Unscaled(nn.Module):
    """Gradients as they are."""

    def forward(self):
        return 1.0

    def update(self, mean_square):
        return 1.0


def started(**options):
    """A run whose head exists, speaks, and works in plain units."""
    rnn = made(**options)
    x, y = data()
    rnn.step(x[:3], y[:3], ends=True)
    torch.manual_seed(8)
    for parameter in rnn._learner.estimator.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    rnn._learner.estimator.scale = Unscaled()
    return rnn


def forward_view(rnn, x, y, fade, discount):
    """The head's gradient towards the lambda targets, by hand: all windows first, then back from the last one."""
    learner = rnn._learner
    head, layout = learner.estimator.head, learner.layout
    states, state = [], layout.first(BATCH)
    losses, ends, whole = [], [], []
    for i in range(0, len(x), 3):
        leaves = [t.detach().requires_grad_(k in layout.live) for k, t in enumerate(state)]
        hidden, last = rnn.core.advance(x[i : i + 3], layout.state(leaves))
        start = layout.live_leaves(leaves)
        state = layout.leaves(last)
        states.append(start)
        losses.append((rnn.core.read(hidden) - y[i : i + 3]).square().mean())
        ends.append(layout.live_leaves(state))
        whole.append(leaves)
    later, total = None, [torch.zeros_like(p) for p in head.parameters()]
    for w in reversed(range(1, len(states))):
        roots, seeds = [losses[w]], [None]
        if later is not None:
            view = learner.estimator.view(whole[w + 1])
            estimate = head(view, None).detach() / BATCH
            mixed = discount * ((1 - fade) * estimate + fade * later)
            roots, seeds = roots + ends[w], seeds + layout.split(mixed, ends[w])
        back = torch.autograd.grad(roots, states[w], seeds, retain_graph=True, allow_unused=True)
        later = layout.rows([torch.zeros_like(s) if g is None else g for g, s in zip(back, states[w], strict=True)])
        estimate = head(learner.estimator.view(whole[w]), None)
        error = (estimate.detach() - later * BATCH) * 2 / estimate.numel()
        found = torch.autograd.grad(estimate, [*head.parameters()], error)
        total = [t + f for t, f in zip(total, found, strict=True)]
    return total


@pytest.mark.parametrize("name", ["gru", "lstm", "lstm cell", "custom"])
@pytest.mark.parametrize(("fade", "discount"), [(0.0, 1.0), (0.5, 0.9), (1.0, 0.9), (1.0, 1.0)])
def test_traces_add_up_to_the_regression_to_the_lambda_target(name, fade, discount):
    kept = Kept()
    rnn = started(
        name=name, traces=fade, discount=discount, cap=None, gain=1.0, update="sequence",
        optimizer={"core": sgd, "heads": kept},
    )  # fmt: skip
    x, y = data()
    wanted = forward_view(rnn, x, y, fade, discount)
    kept.found.clear()

    found = gradients(rnn, kept, x, y)

    assert all(torch.allclose(a, b, atol=1e-10, rtol=0) for a, b in zip(found, wanted, strict=True))
    assert sum(float(w.abs().sum()) for w in wanted) > 1e-3


def test_traces_begin_anew_where_a_sequence_does():
    kept = Kept()
    rnn = started(
        name="gru", traces=1.0, discount=1.0, cap=None, gain=1.0, update="sequence",
        optimizer={"core": sgd, "heads": kept},
    )  # fmt: skip
    x, y = data()
    wanted = forward_view(rnn, x, y, 1.0, 1.0)
    other_x, other_y = data(seed=9)
    kept.found.clear()

    rnn.run(other_x, other_y)
    rnn.run(x, y)

    assert near(kept.found[1], wanted, tolerance=1e-10)


def test_traces_of_a_sequence_that_is_reset_are_wiped_and_the_others_go_on():
    rnn = started(name="gru", traces=1.0)
    x, y = data()
    rnn.step(x[:3], y[:3])
    rnn.step(x[3:6], y[3:6])

    rnn.step(x[6:9], y[6:9], reset=torch.tensor([False, True, False, False]))

    for trace in rnn._learner.traces.held.values():
        assert trace[1].eq(0).all() and trace[0].ne(0).any() and trace[3].ne(0).any()


def test_the_head_learns_from_sequences_that_have_a_past_alone():
    estimator = started()._learner.estimator
    counted = torch.tensor([True, False, True, False])
    view, target = torch.randn(2, BATCH, 2 * WIDE, dtype=torch.double)

    def found(*lesson):
        estimator.zero_grad()
        estimator.learn(*lesson)
        return [p.grad.clone() for p in estimator.head.parameters()]

    some = found(view, None, target, counted)

    assert near(some, found(view[counted], None, target[counted] * 2, None))  # of a mean over half as many
    assert not near(some, found(view, None, target, None), tolerance=1e-4)


def test_lambda_one_is_backprop_whatever_the_head_says():
    kept = Kept()
    rnn = made(blend=1.0, head=lambda spec: Known(torch.ones_like), optimizer={"core": kept, "heads": sgd})
    x, y = data()

    found = gradients(rnn, kept, x, y)

    assert near(found, whole_gradients(rnn, x, y), len(x) / 3)


def test_lambda_between_is_neither_backprop_nor_the_head_alone():
    found = {}
    for blend in (0.0, 0.5, 1.0):
        kept = Kept()
        rnn = made(blend=blend, head=lambda spec: Known(torch.ones_like), centre=False, cap=None,
                   scale=1.0, optimizer={"core": kept, "heads": sgd})  # fmt: skip
        found[blend] = gradients(rnn, kept, *data())

    assert not near(found[0.5], found[0.0], tolerance=1e-4) and not near(found[0.5], found[1.0], tolerance=1e-4)


def test_the_auxiliary_task_changes_the_core_as_soon_as_the_head_speaks():
    found = {}
    for auxiliary in (False, 0.5):
        kept = Kept()
        rnn = made(auxiliary=auxiliary, head=lambda spec: Known(torch.sign), optimizer={"core": kept, "heads": sgd})
        rnn.run(*data())
        if auxiliary:
            nn.init.normal_(rnn._learner.auxiliary.reader.weight)
        kept.found.clear()
        found[auxiliary] = gradients(rnn, kept, *data())[: len([*rnn.core.parameters()])]

    assert not near(found[False], found[0.5], tolerance=1e-5)


def test_the_auxiliary_reader_learns_to_foretell_the_estimate():
    torch.manual_seed(0)
    rnn = made("lstm cell", dtype=torch.float, auxiliary=True, optimizer=adam, centre=False, cap=1.0,
               head=lambda spec: Known(torch.ones_like))  # fmt: skip
    x, y = data(dtype=torch.float, long=30)
    for _ in range(40):
        rnn.run(x, y)

    learner = rnn._learner
    view = learner.estimator.view(learner.layout.leaves(rnn.core.advance(x[:1], None)[1]))

    assert (learner.auxiliary.reader(view) - 1).abs().mean() < 0.3  # capped at one


def consumed(rnn, x, y):
    """What the core consumed at the end of the first window, as rows."""
    import dnigraph.recurrent.learner as room

    kept, backward = [], room.backward
    room.backward = lambda *args: kept.append(args[4]) or backward(*args)
    try:
        rnn.step(x[:3], y[:3])
    finally:
        room.backward = backward
    return kept[0].core


def test_the_consumed_estimate_is_centred_and_capped_and_scaled():
    x, y = data()
    raw = torch.randn(BATCH, 2 * WIDE, dtype=torch.double) * 3
    say = {"head": lambda spec: Known(lambda value: raw), "gain": 2.0, "scale": 0.5, "discount": 0.5}

    plain = consumed(made(**say, cap=None, centre=False), x, y)
    capped = consumed(made(**say, cap=1.5, centre=False), x, y)
    centred = consumed(made(**say, cap=None), x, y)

    assert torch.allclose(plain, raw * 2 * 0.5 / BATCH)
    assert torch.allclose(capped, (raw * 2).clamp(-1.5, 1.5) * 0.5 / BATCH)
    assert torch.allclose(centred, plain - plain.mean(0)) and not torch.allclose(centred, plain)


def test_one_sequence_alone_is_not_centred_away():
    x, y = data(batch=1)

    assert consumed(made(head=lambda spec: Known(torch.ones_like)), x, y).ne(0).all()


def test_the_control_hears_the_same_estimates_of_other_sequences():
    x, y = data()
    raw = torch.randn(BATCH, 2 * WIDE, dtype=torch.double).clamp(-0.1, 0.1)
    say = {"head": lambda spec: Known(lambda value: raw)}
    ours = consumed(made(**say), x, y)

    rnn = made(**say, shuffled=True)
    torch.manual_seed(3)  # an order in which not everybody stays

    control = consumed(rnn, x, y)

    assert not torch.equal(control, ours)
    assert torch.equal(control.sort(0).values, ours.sort(0).values)


def test_at_first_the_core_does_not_listen_and_the_head_learns():
    kept, heads = Kept(), Kept()
    rnn = made(
        listen_after=2, centre=False, head=lambda spec: Known(torch.ones_like), optimizer={"core": kept, "heads": heads}
    )
    silent = Kept()
    baseline = made(boundary="silent", optimizer=silent)
    x, y = data()

    rnn.run(x, y)
    baseline.run(x, y)

    assert near(kept.found[0], silent.found[0]) and near(kept.found[1], silent.found[1])
    assert not near(kept.found[2], silent.found[2], tolerance=1e-6)


def test_a_head_that_reads_an_unbounded_state_sees_its_tanh():
    rnn = made()
    rnn.step(*(t[:3] for t in data()))
    h, c = (torch.full((1, BATCH, WIDE), v, dtype=torch.double) for v in (0.5, 7.0))

    view = rnn._learner.estimator.view([h, c])

    assert view[:, :WIDE].eq(0.5).all() and torch.allclose(view[:, WIDE:], torch.tensor(7.0).double().tanh())


def test_heads_may_see_the_inputs_of_the_window_or_a_label():
    x, y = data()
    seen = []

    class Looking(nn.Module):
        def forward(self, value, condition):
            seen.append(condition)
            return torch.zeros_like(value)

    rnn = made(condition="input", head=lambda spec: Looking())
    rnn.step(x[:3], y[:3])
    rnn.step(x[3:5], y[3:5])
    assert torch.equal(seen[0], x[:3].transpose(0, 1).flatten(1))
    assert torch.equal(seen[1][:, IN:], x[3:5].transpose(0, 1).flatten(1)) and seen[1][:, :IN].eq(0).all()
    assert torch.equal(seen[2], seen[0])  # the lesson about the first window's end

    label = torch.tensor([0, 1, 2, 1])
    seen.clear()
    rnn = made(condition=dg.one_hot(3), head=lambda spec: Looking())
    rnn.step(x[:3], y[:3], label=label)
    assert seen[0].argmax(-1).tolist() == label.tolist()
    with pytest.raises(dg.ConditionError, match="looks at a label, and there is none: give step or run label="):
        rnn.step(x[3:6], y[3:6])


def test_a_head_learns_the_future_it_can_see():
    """The loss at the end asks for the opposite of the sign that the state keeps: a linear head can tell."""
    torch.manual_seed(0)
    keep = nn.RNN(1, 1, bias=False)
    nn.init.constant_(keep.weight_hh_l0, 2.0)
    nn.init.constant_(keep.weight_ih_l0, 2.0)
    rnn = dg.Recurrent(
        keep, horizon=2, loss=lambda out, target: (out * target).mean(),
        boundary=dg.dni_in_time(centre=False, cap=None),
        optimizer={"core": sgd, "heads": lambda p: torch.optim.Adam(p, 0.05)}, monitor=1,
    )  # fmt: skip
    for _ in range(60):
        x = torch.zeros(4, 16, 1)
        x[0] = torch.randint(2, (16, 1)) * 2.0 - 1
        rnn.run(x, x[:1].expand(4, -1, -1), mask=torch.arange(4) == 3)

    out = rnn.run(x, x[:1].expand(4, -1, -1), mask=torch.arange(4) == 3)
    assert out.metrics["horizon"]["error"] < 0.3


def test_scales_know_whether_sequences_end():
    options = made().options

    assert options.strengths(ending=False) == (0.1, 0.1, 0.3)
    assert options.strengths(ending=True) == (1, 1, 0.03)
    assert made(scale=0.7, discount=0.2, cap=None).options.strengths(ending=True) == (0.7, 0.2, None)


def test_an_update_per_sequence_adds_up_the_windows():
    x, y = data()
    each, once = Kept(), Kept()
    one = gradients(made(boundary="silent", optimizer=each), each, x, y)
    two = gradients(made(boundary="silent", optimizer=once, update="sequence"), once, x, y)

    assert len(each.found) == 4 and len(once.found) == 1 and near(one, two)


def test_the_head_of_a_wide_state_has_a_bottleneck_and_starts_silent():
    x, y = torch.randn(3, 8, 4), torch.randn(3, 8, 2)
    found = {}
    for wide in (16, 200):
        rnn = dg.Recurrent(nn.LSTM(4, wide), horizon=3, readout=nn.Linear(wide, 2), loss=torch.nn.functional.mse_loss,
                           optimizer=adam, condition=dg.one_hot(3))  # fmt: skip
        label = torch.arange(8) % 3
        rnn.step(x, y, label=label)
        head = rnn._learner.estimator.head
        found[wide] = head.name
        assert head(torch.randn(8, 2 * wide), label).eq(0).all()
        for _ in range(3):
            rnn.step(x, y, label=label)
        assert head(torch.randn(8, 2 * wide), label).ne(0).any()

    assert found == {16: "linear", 200: "linear 64"}
