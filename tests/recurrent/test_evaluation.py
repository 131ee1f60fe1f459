"""`Recurrent.evaluate`: right numbers, and nothing of the run touched."""

import copy

import pytest
import torch
from kit.streams import BATCH, IN, LONG, OUT, WIDE, adam, data, made, mse, sgd
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import dnigraph as dg

LENGTHS = torch.tensor([12, 7, 3, 9])


@torch.no_grad()
def whole(rnn, x):
    """All outputs, by hand, in one piece."""
    if isinstance(rnn.core.module, nn.RNNBase):
        return rnn.core.read(rnn.core.module(x)[0])
    return rnn.core.read(rnn.core.advance(x, None)[0])


class Touchy(nn.Module):
    """Counts its calls in a buffer, draws a number, and is another function in train mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm1d(WIDE), nn.Dropout(0.5), nn.Linear(WIDE, OUT)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden):
        self.calls += 1
        torch.rand(1)
        return self.out(self.drop(self.norm(hidden.flatten(0, 1)))).view(*hidden.shape[:2], OUT)


@pytest.mark.parametrize("boundary", ["dni", "bptt"])
@pytest.mark.parametrize("name", ["lstm", "lstm, batch first", "lstm cell", "custom", "whole windows"])
def test_loss_and_outputs_are_those_of_the_module_by_hand(name, boundary):
    rnn = made(name, boundary=boundary)
    x, y = data(rnn, long=11)

    found = rnn.evaluate(x, y, outputs=True, metrics={"off": lambda out, y: (out - y).abs().mean()})

    output = whole(rnn, x)
    assert torch.allclose(found.output, output) and not found.output.requires_grad
    assert float(found.loss) == pytest.approx(float(mse(output, y)))
    assert found.metrics == {"off": pytest.approx(float((output - y).abs().mean()))}
    assert found.entries == 11 * BATCH


@pytest.mark.parametrize("when", ["before the first window", "in the middle of a stream", "with stored windows"])
def test_a_run_goes_on_as_if_nothing_had_been_evaluated(when):
    (x, y), others, found = data(), data(seed=3), []
    for looks in (False, True):
        torch.manual_seed(0)
        rnn = made("gru", readout=Touchy(), optimizer=adam, boundary="bptt" if "stored" in when else "dni")
        rnn.core.readout.norm.eval()  # frozen by the user, and stays so
        if when != "before the first window":
            rnn.step(x[:3], y[:3])
        if looks:
            rnn.evaluate(*others)
        losses = [float(rnn.step(x[i : i + 3], y[i : i + 3], ends=i == 9).loss) for i in (3, 6, 9)]
        found.append((losses, rnn.core.state_dict(), [m.training for m in rnn.core.modules()], torch.rand(1)))

    (one, state, modes, drawn), (other, other_state, other_modes, other_drawn) = found
    assert one == other and modes == other_modes and True in modes and False in modes
    assert all(torch.equal(state[k], other_state[k]) for k in state) and drawn.equal(other_drawn)


def test_it_is_eval_mode_and_no_statistics_of_the_batch():
    rnn = made("gru", readout=Touchy(), optimizer=adam)
    x, y = data()
    rnn.run(x, y)
    twin = copy.deepcopy(rnn)
    twin.core.eval()

    assert torch.allclose(rnn.evaluate(x, y, outputs=True).output, whole(twin, x))


def test_after_an_error_the_modes_are_those_of_before():
    rnn = made("gru", readout=Touchy())

    with pytest.raises(ZeroDivisionError):
        rnn.evaluate(*data(), metrics={"wrong": lambda out, y: 1 / 0})

    assert all(m.training for m in rnn.core.modules()) and rnn.core.readout.calls == 0


def test_masks_lengths_and_packed_sequences_count_as_in_a_run():
    rnn = made()
    x, y = data()
    output, there = whole(rnn, x), torch.arange(LONG)[:, None] < LENGTHS
    wanted, mask = float(mse(output[there], y[there])), torch.arange(LONG) % 2 == 0

    assert float(rnn.evaluate(x, y, lengths=LENGTHS).loss) == pytest.approx(wanted)
    packed = [pack_padded_sequence(t, LENGTHS, enforce_sorted=False) for t in (x, y)]
    found = rnn.evaluate(*packed)
    assert (float(found.loss), found.entries) == (pytest.approx(wanted), int(LENGTHS.sum()))
    assert float(rnn.evaluate(x, y, mask=mask).loss) == pytest.approx(float(mse(output[mask], y[mask])))
    assert float(made().run(x, y, lengths=LENGTHS).loss) == pytest.approx(wanted)


def test_a_loader_is_weighed_by_its_entries():
    rnn = made()
    one, two = data(), data(long=5, batch=2, seed=5)

    found = rnn.evaluate(
        iter([one, {"x": two[0], "target": two[1], "mask": torch.arange(5) == 4}, one[0]]), outputs=True
    )

    apart = [rnn.evaluate(*one), rnn.evaluate(*two, mask=torch.arange(5) == 4)]
    total = sum(float(each.loss) * each.entries for each in apart)
    assert found.entries == LONG * BATCH + 2 and float(found.loss) == pytest.approx(total / found.entries)
    assert [len(out) for out in found.output] == [LONG, 5, LONG]


def test_batches_of_a_stream_go_on_from_each_other_where_they_do_not_end():
    rnn = made()
    x, y = data()
    pieces = [(x[i : i + 4], y[i : i + 4]) for i in range(0, LONG, 4)]

    assert float(rnn.evaluate(pieces, ends=False).loss) == pytest.approx(float(rnn.evaluate(x, y).loss))
    assert float(rnn.evaluate(pieces).loss) != pytest.approx(float(rnn.evaluate(x, y).loss))


def test_a_state_that_is_given_is_where_the_first_sequences_begin():
    rnn = made()
    x, y = data()
    _, state = rnn.core.module(x[:6])

    assert float(rnn.evaluate(x[6:], y[6:], state=state).loss) == pytest.approx(float(mse(whole(rnn, x)[6:], y[6:])))


def test_a_decoupled_step_sees_its_label_and_is_the_plain_model():
    dm = dg.decouple(nn.Sequential(nn.Linear(IN + WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE)), "1",
                     (torch.ones(2, IN + WIDE),), condition=dg.one_hot(3))  # fmt: skip

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = dm

        def forward(self, x, state=None):
            state = x.new_zeros(len(x), WIDE) if state is None else state
            state = self.inner(torch.cat((x, state), -1)).tanh()
            return state[:, :OUT], state

    rnn = dg.Recurrent(Step(), horizon=3, loss=mse, optimizer=sgd, boundary="silent")
    x, y = data(dtype=torch.float)
    label = torch.tensor([0, 1, 2, 0])
    rnn.run(x, y, label=label)
    before = [p.clone() for p in rnn.parameters()]

    found = rnn.evaluate(x, y, label=label)

    assert found.loss.isfinite() and all(map(torch.equal, before, rnn.parameters()))
    assert dm.training and float(rnn.run(x, y, label=label).loss) == pytest.approx(float(found.loss), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda rnn, x, y: rnn.evaluate([(x, y)], y), "target given beside a loader(.|\n)*let its batches have them"),
        (lambda rnn, x, y: rnn.evaluate([(x, y, y, y)]), "a loader gave 4 values(.|\n)*a batch is x"),
        (lambda rnn, x, y: rnn.evaluate([{"x": x, "targt": y}]), "a batch has no 'targt'; nearest: target"),
        (lambda rnn, x, y: rnn.evaluate(x, y, metrics=[mse]), "maps names to functions"),
        (lambda rnn, x, y: rnn.evaluate(x, y, outputs=1), "outputs=1 is no bool"),
        (lambda rnn, x, y: rnn.evaluate(x, y[:3]), r"target is \[3, 4, 2\], but must begin with \[12, 4\]"),
    ],
)
def test_what_does_not_fit_is_told(call, words):
    with pytest.raises(dg.RecurrentError, match=words):
        call(made(), *data())


def test_without_a_target_there_are_outputs_and_no_loss():
    found = made().evaluate(data()[0], outputs=True)

    assert found.loss.isnan() and found.entries == 0 and len(found.output) == LONG
