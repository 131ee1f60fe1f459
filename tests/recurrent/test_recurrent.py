"""Windows of a stream: the proofs that credit is neither lost nor counted twice, and that nothing leaks."""

import pytest
import torch
import torch.nn.functional as F
from kit.streams import (
    BATCH,
    IN,
    LONG,
    OUT,
    STEPS,
    WIDE,
    Kept,
    Known,
    adam,
    data,
    gradients,
    made,
    mse,
    near,
    sgd,
    whole_gradients,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import dnigraph as dg

# torch's own: it says so whenever an LSTM has projections
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


@pytest.mark.parametrize("name", STEPS)
def test_the_oracle_is_full_backprop_through_time(name):
    kept = Kept()
    rnn = made(name, boundary="oracle", optimizer=kept)
    x, y = data(rnn)

    found = gradients(rnn, kept, x, y)

    assert len(kept.found) == 1
    assert near(found, whole_gradients(rnn, x, y), LONG / 3)


@pytest.mark.parametrize("name", ["lstm", "gru", "custom"])
def test_the_oracle_handles_a_rest_of_a_window_and_a_loss_at_some_steps(name):
    kept = Kept()
    rnn = made(name, boundary="oracle", optimizer=kept)
    x, y = data(rnn, long=11)
    mask = torch.rand(11, BATCH) < 0.4

    found = gradients(rnn, kept, x, y, mask=mask)

    assert near(found, whole_gradients(rnn, x, y, mask), int(mask.sum()) / (3 * BATCH))


def test_without_credit_the_gradients_are_others():
    kept = Kept()
    rnn = made(boundary="silent", optimizer=kept)
    x, y = data(rnn)

    found = gradients(rnn, kept, x, y)

    assert len(kept.found) == LONG // 3
    assert not near(found, whole_gradients(rnn, x, y), LONG / 3, tolerance=1e-4)


@pytest.mark.parametrize("boundary", ["dni", "silent", "oracle", "shuffled"])
@pytest.mark.parametrize("name", STEPS)
def test_a_window_as_long_as_the_sequence_is_plain_backprop_bitwise(name, boundary):
    kept = Kept()
    rnn = made(name, torch.float, boundary=boundary, optimizer=kept, horizon=LONG)
    x, y = data(rnn, dtype=torch.float)

    found = gradients(rnn, kept, x, y)

    wanted = whole_gradients(rnn, x, y)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_the_head_says_reaches_the_core_and_only_that():
    x, y = data()
    options = {"horizon": 6, "cap": None, "centre": False, "scale": 1.0, "discount": 1.0}
    found = {}
    for name, say in {"zero": torch.zeros_like, "one": torch.ones_like}.items():
        kept = Kept()
        rnn = made(head=lambda spec, say=say: Known(say), optimizer={"core": kept, "heads": sgd}, **options)
        found[name] = gradients(rnn, kept, x, y)
    silent = Kept()
    baseline = gradients(made(boundary="silent", horizon=6, optimizer=silent), silent, x, y)

    assert near(found["zero"], baseline)
    assert not near(found["one"], baseline, tolerance=1e-3)


def test_a_head_that_says_the_truth_gives_full_backprop_and_hears_the_truth():
    """The target of the head at a boundary is the gradient of all later losses, and of no other."""
    x, y = data()
    rnn = made(boundary="silent")
    h = torch.zeros(1, BATCH, WIDE, dtype=torch.double)
    _, (h1, c1) = rnn.core.module(x[:6], (h, h))
    border = [t.detach().requires_grad_() for t in (h1, c1)]
    y2, _ = rnn.core.module(x[6:], tuple(border))
    later = mse(rnn.core.read(y2), y[6:])
    truth = torch.cat(torch.autograd.grad(later, border), -1)[0]

    kept, heard = Kept(), []
    true = made(
        horizon=6, cap=None, centre=False, gain=1.0, scale=1.0, discount=1.0,
        head=lambda spec: Known(lambda value: truth * BATCH), optimizer={"core": kept, "heads": sgd},
    )  # fmt: skip
    true.step(x[:6], y[:6])
    learner = true._learner
    learner.estimator.learn = lambda view, label, target, *more: heard.append(target) or {}
    true.step(x[6:], y[6:], ends=True)

    assert torch.allclose(heard[0], truth, atol=1e-13)
    assert near(kept.total(), whole_gradients(true, x, y), LONG / 6)


def test_the_target_contains_the_next_estimate_discounted():
    x, y = data()
    heard = []
    rnn = made(cap=None, centre=False, gain=1.0, scale=0.5, discount=0.5, head=lambda spec: Known(torch.ones_like))
    rnn.step(x[:3], y[:3])
    learner = rnn._learner
    learner.estimator.learn = lambda view, label, target, *more: heard.append(target) or {}
    state = rnn.state

    rnn.step(x[3:6], y[3:6])

    start = [t.clone().requires_grad_() for t in state]
    out, last = rnn.core.module(x[3:6], tuple(start))
    rest = sum(t.sum() for t in last) * 0.5 / BATCH
    wanted = torch.autograd.grad(mse(rnn.core.read(out), y[3:6]) + rest, start)
    assert torch.allclose(heard[0], torch.cat(wanted, -1)[0], atol=1e-13)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_one_pass_and_two_passes_give_the_same_where_they_must(scale):
    """Unequal scale and discount take two passes. A difference of 1e-12 makes no other difference."""
    found = []
    for discount in (scale, scale * (1 - 1e-12)):
        kept = Kept()
        rnn = made(scale=scale, discount=discount, optimizer={"core": kept, "heads": adam})
        x, y = data(rnn)
        rnn.run(x, y)
        found.append(gradients(rnn, kept, x, y))

    assert near(*found, tolerance=1e-9)
    assert sum(float(g.abs().sum()) for g in found[0]) > 0


def test_nothing_leaks_from_one_sequence_to_another():
    x, y = data()
    other = x.clone()
    other[:, 1:] += torch.randn_like(other[:, 1:])
    found = []
    for inputs in (x, other):
        rnn = made(centre=False)
        rnn.run(inputs, y, outputs=True)
        out = rnn.run(inputs, y, outputs=True).output
        leaf = inputs.clone().requires_grad_()
        found.append((out[:, 0], leaf))

    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("name", ["lstm", "custom"])
def test_a_reset_inside_a_window_is_a_new_sequence(name):
    kept = Kept()
    rnn = made(name, boundary="silent", optimizer=kept, horizon=8)
    x, y = data(rnn, long=8)
    reset = torch.zeros(8, BATCH, dtype=torch.bool)
    reset[5, 2] = True

    out = rnn.run(x, y, reset=reset, outputs=True).output

    apart = made(name, boundary="silent", horizon=8)
    alone = apart.run(x[5:, 2:3], y[5:, 2:3], outputs=True).output
    whole = apart.run(x, y, outputs=True).output
    assert torch.allclose(out[5:, 2:3], alone, atol=1e-13)
    assert torch.allclose(out[:, [0, 1, 3]], whole[:, [0, 1, 3]], atol=1e-13)
    assert torch.allclose(out[:5], whole[:5], atol=1e-13) and not torch.allclose(out[5:, 2], whole[5:, 2])


def test_no_gradient_goes_over_a_reset():
    rnn = made(boundary="oracle", optimizer=(kept := Kept()), horizon=3)
    x, y = data(long=6)
    mask = torch.zeros(6, BATCH, dtype=torch.bool)
    mask[4:] = True
    reset = torch.zeros(6, BATCH, dtype=torch.bool)
    reset[4] = True

    found = gradients(rnn, kept, x, y, mask=mask, reset=reset)

    alone = Kept()
    wanted = gradients(made(boundary="silent", optimizer=alone), alone, x[4:], y[4:])
    assert near(found, wanted)


def test_a_reset_at_a_windows_start_stops_credit_and_the_heads_lesson():
    x, y = data()
    heard = []
    rnn = made(head=lambda spec: Known(torch.ones_like))
    rnn.step(x[:3], y[:3])
    rnn._learner.estimator.learn = lambda view, label, target, counted, *more: heard.append((target, counted)) or {}

    rnn.step(x[3:6], y[3:6], reset=torch.tensor([True, False, False, True]))

    ((target, counted),) = heard
    assert counted.tolist() == [False, True, True, False]
    assert target[[0, 3]].eq(0).all() and target[[1, 2]].ne(0).any(-1).all()


@pytest.mark.filterwarnings("ignore:no entry of this window")
def test_a_sequence_that_ends_is_worth_nothing_later_and_begins_anew():
    x, y = data()
    rnn = made(head=lambda spec: Known(torch.ones_like), centre=False, cap=0.3, optimizer=(kept := Kept()))
    ends = torch.tensor([True] * BATCH)
    ends[1] = False

    rnn.step(x[:3], y[:3], mask=torch.zeros(3, dtype=torch.bool), ends=ends)
    alone = Kept()
    share = {"scale": 1 / BATCH, "discount": 1 / BATCH}
    one = made(head=lambda spec: Known(torch.ones_like), centre=False, cap=0.3, optimizer=alone, **share)
    one.step(x[:3, 1:2], y[:3, 1:2], mask=torch.zeros(3, dtype=torch.bool))
    assert near(kept.found[0], alone.found[0])

    again = rnn.step(x[3:6], y[3:6]).output
    fresh = made().step(x[3:6], y[3:6]).output
    assert torch.equal(again[:, [0, 2, 3]], fresh[:, [0, 2, 3]])
    assert not torch.allclose(again[:, 1], fresh[:, 1])


def test_packed_sequences_give_the_gradients_of_each_by_itself():
    lengths = torch.tensor([12, 3, 7, 5])
    kept = Kept()
    rnn = made(boundary="oracle", optimizer=kept)
    x, y = data()

    found = gradients(rnn, kept, *(pack_padded_sequence(t, lengths, enforce_sorted=False) for t in (x, y)))

    wanted = None
    for i, length in enumerate(lengths):
        one = whole_gradients(rnn, x[:length, i : i + 1], y[:length, i : i + 1])
        one = [g * int(length) / (3 * BATCH) for g in one]
        wanted = one if wanted is None else [a + b for a, b in zip(wanted, one, strict=True)]
    assert near(found, wanted)


def test_padding_makes_no_difference():
    lengths = torch.tensor([12, 3, 7, 5])
    found = []
    for padding in (0.0, 5.0):
        torch.manual_seed(3)
        rnn = made(optimizer=adam)
        x, y = data()
        there = (torch.arange(LONG)[:, None] < lengths)[..., None]
        x, y = x.where(there, padding), y.where(there, padding)
        losses = [float(rnn.run(x, y, lengths=lengths).loss) for _ in range(4)]
        found.append((losses, [p.clone() for p in rnn.parameters()]))

    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_learned_first_states_learn():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.h = nn.Parameter(torch.zeros(WIDE, dtype=torch.double))

        def forward(self, batch):
            return self.h.expand(batch, WIDE)

    rnn = made("gru cell", initial=First(), boundary="oracle", optimizer=(kept := Kept()))
    x, y = data()
    rnn.run(x, y)

    h = rnn.initial.h.detach().clone().requires_grad_()
    state, outputs = h.expand(BATCH, WIDE), []
    for at in x:
        state = rnn.core.module(at, state)
        outputs.append(rnn.core.readout(state))
    wanted = torch.autograd.grad(mse(torch.stack(outputs), y), h)[0] * LONG / 3
    assert torch.allclose(kept.total()[-1], wanted, atol=1e-13)
    assert wanted.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"auxiliary": True}, {"blend": 0.5}, {"traces": 0.5}, {"update": "sequence"}])
def test_going_on_from_a_file_in_mid_stream_gives_the_weights_of_never_having_stopped(options, tmp_path):
    x, y = data(long=24)
    windows = [(x[i : i + 3], y[i : i + 3]) for i in range(0, 24, 3)]

    def go(rnn, some, last):
        for i, (a, b) in enumerate(some):
            rnn.step(a, b, ends=last and i == len(some) - 1)

    rnn = made(optimizer=adam, **options)
    rnn.run(x, y)
    go(rnn, windows[:4], False)
    rnn.save(tmp_path / "run.pt")
    go(rnn, windows[4:], True)

    other = made(optimizer=adam, **options)
    torch.manual_seed(77)
    other.load(tmp_path / "run.pt")
    other.save(tmp_path / "again.pt")  # still waits for its first window
    other.load(tmp_path / "again.pt")
    go(other, windows[4:], True)

    assert other.steps == rnn.steps
    assert all(torch.equal(a, b) for a, b in zip(rnn.parameters(), other.parameters(), strict=True))


def test_weights_are_there_as_soon_as_they_are_loaded(tmp_path):
    rnn = made(optimizer=adam)
    rnn.run(*data())
    rnn.save(tmp_path / "run.pt")

    other = made()
    other.load(tmp_path / "run.pt")

    assert all(torch.equal(a, b) for a, b in zip(rnn.core.parameters(), other.core.parameters(), strict=True))


def test_memory_does_not_grow_with_the_sequence():
    peaks = []
    for long in (12, 120):
        rnn = made(dtype=torch.float)
        x, y = data(long=long, dtype=torch.float)
        rnn.run(x[:6], y[:6])
        with dg.saved_bytes(excluding=[*rnn.parameters(), x, y]) as count:
            rnn.run(x, y)
        peaks.append(count.peak)
        assert count.live == 0

    assert peaks[0] == peaks[1] > 0


def test_not_even_the_oracle_keeps_more_than_one_graph():
    peaks = []
    for long in (12, 120):
        rnn = made(dtype=torch.float, boundary="oracle")
        x, y = data(long=long, dtype=torch.float)
        with dg.saved_bytes(excluding=[*rnn.parameters(), x, y]) as count:
            rnn.run(x, y)
        peaks.append(count.peak)

    assert peaks[0] == peaks[1] > 0


def test_a_stream_by_hand_and_run_are_the_same():
    x, y = data(long=11)
    one, two = made(optimizer=adam), made(optimizer=adam)
    two.ending = True

    one.run(x, y, ends=True)
    for i in range(0, 11, 3):
        two.step(x[i : i + 3], y[i : i + 3], ends=i == 9)

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_skipped_and_reported():
    rnn = made(optimizer=adam)
    x, y = data()
    rnn.step(x[:3], y[:3])
    before = [p.clone() for p in rnn.core.parameters()]
    bad = x[3:6].clone()
    bad[1, 2] = float("nan")

    out = rnn.step(bad, y[3:6])

    assert all(torch.equal(a, b) for a, b in zip(before, rnn.core.parameters(), strict=True))
    assert out.metrics["core"]["skipped"] == 1 and rnn.skipped == 1
    assert torch.isfinite(rnn.step(x[6:9], y[6:9]).loss)
    assert all(torch.isfinite(p).all() for p in rnn.parameters())


def test_dropout_is_the_same_in_both_runs_of_a_stored_window():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.drop = nn.GRUCell(IN, OUT), nn.Dropout(0.5)

        def forward(self, x, state=None):
            state = self.cell(self.drop(x), state)
            return state, state

    kept = Kept()
    torch.manual_seed(0)
    rnn = dg.Recurrent(Dropping().double(), horizon=3, loss=mse, optimizer=kept, boundary="oracle", clip=None)
    x, y = data()
    torch.manual_seed(5)
    rnn.run(x, y)

    torch.manual_seed(5)
    state, outputs = torch.zeros(BATCH, OUT, dtype=torch.double), []
    for at in x:
        out, state = rnn.core.module(at, state)
        outputs.append(out)
    wanted = torch.autograd.grad(mse(torch.stack(outputs), y), [*rnn.core.parameters()])
    assert near(kept.total(), wanted, LONG / 3)


def test_class_labels_and_masks_work_with_usual_losses():
    torch.manual_seed(0)
    rnn = dg.Recurrent(
        nn.LSTM(IN, WIDE), horizon=3, readout=nn.Linear(WIDE, 7), loss=F.cross_entropy, optimizer=adam,
        condition=dg.one_hot(7), head="mlp",
    )  # fmt: skip
    label = torch.randint(7, (BATCH,))
    last = torch.arange(LONG) == LONG - 1
    x = torch.randn(LONG, BATCH, IN)

    losses = [float(rnn.run(x, label.expand(LONG, -1), mask=last, label=label).loss) for _ in range(40)]

    assert losses[-1] < losses[0]


def test_every_so_many_windows_the_metrics_are_told_and_they_are_those_of_the_window():
    x, y = data(long=3)
    always = [rnn.step(x, y).metrics for rnn in [made(optimizer=adam, monitor=1)] for _ in range(7)]

    for monitor in (2, 3, 0):
        rnn = made(optimizer=adam, monitor=monitor)
        told = [rnn.step(x, y).metrics for _ in range(7)]

        asked = [bool(monitor) and number % monitor == 0 for number in range(1, 8)]
        assert told == [metrics if look else {} for metrics, look in zip(always, asked, strict=True)]
    assert all(metrics["horizon"].keys() == {"cosine", "error", "target_rms"} for metrics in always[1:])


@pytest.mark.parametrize(("monitor", "told"), [(1, True), (2, True), (3, False), (4, True), (0, False)])
def test_stored_windows_tell_their_metrics_where_they_learn_in_a_window_that_is_asked_for(monitor, told):
    rnn = made(boundary=dg.blend("dni", 0.5), optimizer=adam, monitor=monitor)

    metrics = rnn.run(*data(long=12)).metrics  # they learn in the fourth window

    assert (metrics.get("core", {}).keys() == {"gradient_norm", "skipped"}) is told
    assert (metrics.get("horizon", {}).keys() == {"cosine", "error", "target_rms"}) is told
    assert bool(metrics) is told
