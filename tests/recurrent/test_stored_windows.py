"""Stored windows whose sequences end here and there: each sequence learns once, as backprop would have it."""

import warnings

import pytest
import torch
from kit.streams import BATCH, OUT, Kept, adam, data, made, near
from torch import nn

from dnigraph.recurrent.carried_state import Place
from dnigraph.recurrent.stored_windows import Stored, count_finished, settlings
from dnigraph.recurrent.window import Window

pytestmark = pytest.mark.filterwarnings("ignore:no entry of this window")
LAST = 7  # windows of the stream


def flags(*rows):
    found = torch.zeros(BATCH, dtype=torch.bool)
    found[list(rows)] = True
    return found


ENDS = {
    "in turns": lambda i: {"ends": flags(i % BATCH)},
    "two and two": lambda i: {"ends": flags(0, 1) if i % 2 else flags(2, 3)},
    "one goes on for long": lambda i: {"ends": flags(0, 1, 2)} if i != LAST - 1 else {"ends": True},
    "by resets": lambda i: {"reset": flags(i % BATCH)} if i != LAST - 1 else {"ends": True},
    "by resets inside windows": lambda i: {
        "reset": torch.stack((flags(), flags(i % BATCH), flags((i + 1) % BATCH))),
        **({"ends": True} if i == LAST - 1 else {}),
    },
    "all ways": lambda i: {
        "reset": torch.stack((flags((i + 2) % BATCH), flags(i % BATCH), flags(i % BATCH))),
        "ends": flags((i + 1) % BATCH) if i != LAST - 1 else True,
    },
}


def windows(rnn, which, count=LAST, masked=False):
    """A stream of windows, and how each of them is to be called."""
    x, y = data(rnn, long=3 * count, seed=4)
    time = rnn.core.time
    mask = torch.rand(3 * count, BATCH, generator=torch.Generator().manual_seed(2)) < 0.7
    mask = mask.t() if time else mask
    for i in range(count):
        x_i, y_i, m_i = (t.narrow(time, 3 * i, 3) for t in (x, y, mask))
        options = dict(ENDS[which](i))
        if time and "reset" in options and options["reset"].ndim == 2:
            options["reset"] = options["reset"].t()
        yield x_i, y_i, m_i if masked else None, options


def by_hand(rnn, stream):
    """The gradients of the sum over all entries / (horizon * batch), by one graph through the whole stream."""
    states, total = [None] * BATCH, 0
    for x, y, mask, options in stream:
        x, y = (t.transpose(0, 1) if rnn.core.time else t for t in (x, y))
        mask = torch.ones(3, BATCH, dtype=torch.bool) if mask is None else mask.t() if rnn.core.time else mask
        reset, ends = options.get("reset"), options.get("ends", flags())
        if reset is not None and reset.ndim == 2 and rnn.core.time:
            reset = reset.t()
        for row in range(BATCH):
            for t in range(3):
                anew = False if reset is None else reset[row] and t == 0 if reset.ndim == 1 else reset[t, row]
                piece = x[t : t + 1, row : row + 1]
                piece = piece.transpose(0, 1) if rnn.core.time else piece
                hidden, states[row] = rnn.core.advance(piece, None if anew else states[row])
                if mask[t, row]:
                    total = total + (rnn.core.read(hidden).flatten() - y[t, row]).square().sum() / (3 * BATCH * OUT)
            if ends is True or ends[row]:
                states[row] = None
    return torch.autograd.grad(total, list(rnn.core.parameters()))


@pytest.mark.parametrize("name", ["gru", "lstm, batch first"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("which", ENDS)
def test_the_gradients_of_sequences_that_end_here_and_there_are_those_of_backprop(which, masked, name):
    kept = Kept()
    rnn = made(name, boundary="oracle", optimizer=kept)
    stream = list(windows(rnn, which, masked=masked))

    for x, y, mask, options in stream:
        rnn.step(x, y, mask=mask, **options)

    stepped = len(kept.found)
    if stream[-1][3].get("ends") is not True:  # what has not ended yet
        rnn.step(stream[0][0], stream[0][1], mask=torch.zeros(3, dtype=torch.bool), ends=True)
    assert near(kept.total(), by_hand(rnn, stream))
    assert stepped >= 1


@pytest.mark.parametrize("blend", [1.0, 0.5])
@pytest.mark.parametrize("which", ENDS)
def test_with_a_blend_the_head_learns_each_target_once(which, blend):
    """With lambda = 1 the targets are those of the oracle, so the head's are those of a stream that ends as a whole."""
    rnn, oracle = (
        made("gru", blend=blend, optimizer=adam, centre=False),
        made("gru", boundary="oracle", optimizer=adam),
    )
    counted = []
    learn = None

    def spy(view, label, target, rows, *more):
        counted.append(BATCH if rows is None else int(rows.sum()))
        return learn(view, label, target, rows, *more)

    crossings, fresh = 0, flags(0, 1, 2, 3)
    for x, y, mask, options in windows(rnn, which):
        rnn.step(x, y, mask=mask, **options)
        oracle.step(x, y, mask=mask, **options)
        if learn is None:
            learner = rnn.prepared()
            learn, learner.estimator.learn = learner.estimator.learn, spy
        reset = options.get("reset")
        start = fresh if reset is None else fresh | (reset if reset.ndim == 1 else reset[0])
        crossings += int((~start).sum())
        fresh = flags(0, 1, 2, 3) if options.get("ends") is True else options.get("ends", flags())
    rnn.step(x, y, mask=torch.zeros(3, dtype=torch.bool), ends=True)
    crossings += int((~fresh).sum())

    assert sum(counted) == crossings
    if blend == 1:
        oracle.step(x, y, mask=torch.zeros(3, dtype=torch.bool), ends=True)
        pairs = zip(rnn.core.parameters(), oracle.core.parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("options", [{"boundary": "oracle"}, {"blend": 0.5}], ids=str)
@pytest.mark.parametrize("which", ENDS)
def test_a_stream_whose_sequences_never_all_end_together_learns(which, options):
    rnn = made("gru", optimizer=adam, **options)
    before = [p.clone() for p in rnn.core.parameters()]
    losses = []

    for _ in range(4):
        for x, y, mask, ends in windows(rnn, which):
            ends = {k: v for k, v in ends.items() if v is not True}
            losses.append(float(rnn.step(x, y, mask=mask, **ends).loss))

    assert all(not torch.equal(a, b) for a, b in zip(before, rnn.core.parameters(), strict=True))
    assert sum(losses[-LAST:]) < sum(losses[:LAST])
    if which != "one goes on for long":
        assert len(rnn._stored) <= 3 * BATCH


def test_whole_sequences_of_several_lengths_learn_together_as_before():
    kept = Kept()
    rnn = made(boundary="oracle", optimizer=kept)
    x, y = data(long=12)

    rnn.run(x, y, lengths=torch.tensor([2, 5, 7, 12]))

    assert len(kept.found) == 1


@pytest.mark.parametrize("options", [{"boundary": "oracle"}, {"blend": 0.5}], ids=str)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_stream_of_such_sequences_resumes_bitwise(options, at, tmp_path):
    whole, first = (made("gru", optimizer=adam, **options) for _ in range(2))
    stream = list(windows(whole, "all ways"))
    for x, y, mask, ends in stream:
        whole.step(x, y, mask=mask, **ends)
    for x, y, mask, ends in stream[:at]:
        first.step(x, y, mask=mask, **ends)
    first.save(tmp_path / "run.pt")

    second = made("gru", optimizer=adam, **options)
    second.load(tmp_path / "run.pt")
    for x, y, mask, ends in stream[at:]:
        second.step(x, y, mask=mask, **ends)

    pairs = zip(whole.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_dropout_is_the_same_in_a_second_run_of_a_part_of_the_sequences():
    torch.manual_seed(0)
    rnn = made("gru", boundary="oracle", optimizer=adam, readout=nn.Sequential(nn.Dropout(0.5), nn.Linear(5, OUT)))
    seen = []
    rnn.core.readout[0].register_forward_hook(lambda m, a, out: seen.append((a[0].shape, out.eq(0))))

    for x, y, mask, ends in windows(rnn, "in turns", count=BATCH):
        rnn.step(x, y, mask=mask, **ends)

    again = seen[BATCH:][::-1]
    assert len(again) == BATCH
    assert all(torch.equal(one[1], other[1]) for one, other in zip(seen, again, strict=False))


def test_a_reset_that_drops_stored_windows_is_told_once():
    rnn = made(boundary="oracle")
    x, y = data(long=3)
    rnn.step(x, y)

    with pytest.warns(UserWarning, match=r"reset\(\) drops 1 windows.*end them before: step\(..., ends=True\)"):
        rnn.reset()
    rnn.step(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn.reset()
        rnn.step(x, y, ends=True)
        rnn.reset()


def stored(length=2, reset=None, ends=None, fresh=None, settled=None):
    flagged = [None if f is None else torch.tensor(f) for f in (reset, ends, fresh, settled)]
    x = torch.zeros(length, 3, 1)
    window = Window(x, None, None, flagged[0], flagged[1], None, length, 3)
    return Stored(window, Place([], flagged[2], None), None, {}, 1.0, settled=flagged[3])


YES, NO = True, False


@pytest.mark.parametrize(
    ("this", "before", "count"),
    [
        ({}, None, 0),
        ({"ends": [YES, YES, NO]}, None, 2),
        ({"reset": [[YES, YES, NO], [NO, NO, YES]]}, None, 1),  # those of the first step ended before the window
        ({"length": 1, "reset": [[YES, YES, YES]]}, None, 0),
        ({"length": 3, "reset": [[NO] * 3, [YES, NO, NO], [YES, NO, NO]]}, None, 1),
        ({"length": 2, "reset": [[NO] * 3, [YES, NO, NO]], "ends": [YES, NO, NO]}, None, 2),
        ({"fresh": [YES, NO, YES]}, None, 0),
        ({"fresh": [YES, NO, YES]}, {}, 2),
        ({"fresh": [YES, NO, YES]}, {"ends": [YES, NO, NO]}, 1),  # one of them has been counted
    ],
)
def test_sequences_are_counted_once_when_they_end(this, before, count):
    this, before = stored(**this), None if before is None else stored(**before).window

    assert count_finished(this.window, this.place, before) == count


@pytest.mark.parametrize(
    ("windows", "entries", "follows", "crossing"),
    [
        # Sequence 0 ends with the second window, 1 inside of it, 2 not at all.
        ([{"fresh": [YES] * 3}, {"reset": [[NO] * 3, [NO, YES, NO]], "ends": [YES, NO, NO]}],
         [[[YES, YES, NO]] * 2, [[YES, YES, NO], [YES, NO, NO]]], [[YES, YES, NO], [NO] * 3],
         [[NO] * 3, [YES, YES, NO]]),
        # A sequence that begins with the second window shows that the one before it has ended.
        ([{}, {"fresh": [YES, NO, NO]}], [[[YES, NO, NO]] * 2, [[NO] * 3] * 2], [[NO] * 3] * 2,
         [[YES, NO, NO], [NO] * 3]),
        # What a sweep has learned from does not count again.
        ([{"ends": [YES, YES, NO], "settled": [[YES, NO, NO], [NO, NO, NO]]}], [[[NO, YES, NO], [YES, YES, NO]]],
         [[NO] * 3], [[NO, YES, NO]]),
    ],
)  # fmt: skip
def test_only_sequences_that_have_ended_settle(windows, entries, follows, crossing):
    found = settlings([stored(**window) for window in windows])

    assert [s.entries.tolist() for s in found] == entries
    assert [s.follows.tolist() for s in found] == follows
    assert [s.crossing.tolist() for s in found] == crossing
