"""Recurrent networks in trouble: numbers that are not finite, files of other runs, ends here and there."""

import copy

import pytest
import torch
from kit.streams import BATCH, IN, OUT, WIDE, adam, bounded, data, made, mse
from torch import nn

import dnigraph as dg
from dnigraph.recurrent.credit import guessed
from dnigraph.recurrent.dni_in_time import InTime
from dnigraph.recurrent.options import Options


def weights(rnn):
    return [v.clone() for module in rnn.modules().values() for v in module.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def loaded_and_stepped(rnn, file, x, y):
    rnn.load(file)
    rnn.step(x, y)


class Begin(nn.Module):
    """A first state that is learned, through a graph that keeps something."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDE, dtype=torch.double))

    def forward(self, batch):
        return torch.tanh(self.weight * torch.ones(batch, 1, dtype=torch.double))


def beginning(**options):
    torch.manual_seed(0)
    cell, out = nn.GRUCell(IN, WIDE).double(), nn.Linear(WIDE, OUT).double()
    settings = {"horizon": 3, "loss": mse, "optimizer": adam, "readout": out, "initial": Begin(), **options}
    return dg.Recurrent(cell, **bounded(settings))


@pytest.mark.parametrize("options", [{}, {"boundary": "shuffled"}, {"auxiliary": True}], ids=str)
def test_a_window_that_is_not_finite_costs_one_update_also_where_heads_see_inputs(options):
    rnn = made(condition="input", optimizer=adam, **options)
    x, y = data(long=24)
    x[10, 0] = float("nan")

    for begin in range(0, 24, 3):
        rnn.step(x[begin : begin + 3], y[begin : begin + 3])

    assert rnn.skipped == 1
    assert all(p.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"boundary": "silent"}, "boundary='silent' here and 'dni' in the file"),
        ({"boundary": "shuffled"}, "boundary='shuffled' here"),
        ({"auxiliary": True}, "auxiliary=0.003 here and 0.0 in the file"),
        ({"blend": 0.5}, "blend=0.5 here and 0.0 in the file"),
        ({"head": "mlp"}, "head: head"),
        ({"optimizer": lambda p: torch.optim.SGD(p, 0.1)}, "core: optimised by SGD here and Adam in the file"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_of_another_run_is_refused_and_changes_nothing(other, words, tmp_path):
    rnn, file = made(optimizer=adam), tmp_path / "run.pt"
    x, y = data()
    rnn.step(x[:3], y[:3])
    rnn.save(file)
    used, fresh = made(**{"optimizer": adam, **other}), made(**{"optimizer": adam, **other})
    used.step(x[3:6], y[3:6])
    before = weights(used)

    with pytest.raises(dg.RecurrentError, match=words):
        used.load(file)
    assert same(before, weights(used))

    with pytest.raises(dg.RecurrentError, match=words):
        loaded_and_stepped(fresh, file, x[:3], y[:3])
    if fresh._waiting is not None:  # a first window had to show it: every window says so, until another file is loaded
        with pytest.raises(dg.RecurrentError, match=words):
            fresh.step(x[:3], y[:3])


@pytest.mark.parametrize("given", [False, True])
def test_a_state_that_is_set_before_the_first_window_holds_over_a_file(given, tmp_path):
    rnn, other = made("gru", boundary="silent"), made("gru", boundary="silent")
    x, y = data()
    state = torch.randn(1, BATCH, WIDE, dtype=torch.double) if given else None
    rnn.step(x[:3], y[:3])
    rnn.save(tmp_path / "run.pt")
    other.load(tmp_path / "run.pt")
    for one in (rnn, other):
        one.reset(state)
    rnn.save(tmp_path / "given.pt")
    third = made("gru", boundary="silent")
    third.load(tmp_path / "given.pt")

    wanted = rnn.step(x[3:6], y[3:6]).output

    assert torch.equal(wanted, other.step(x[3:6], y[3:6]).output)
    assert torch.equal(wanted, third.step(x[3:6], y[3:6]).output)


def test_a_state_for_another_number_of_sequences_is_refused_and_stays():
    rnn = made("gru")
    x, y = data()
    rnn.step(x[:3], y[:3])
    rnn.reset(torch.zeros(1, BATCH + 1, WIDE, dtype=torch.double))

    for _ in range(2):
        with pytest.raises(dg.RecurrentError, match=f"has {BATCH} sequences, the state that was given has {BATCH + 1}"):
            rnn.step(x[:3], y[:3])


def test_ends_of_nobody_are_no_ends():
    rnn, other = made(update="sequence", optimizer=adam), made(update="sequence", optimizer=adam)
    x, y = data()

    rnn.step(x[:3], y[:3], ends=torch.zeros(BATCH, dtype=torch.bool))
    other.step(x[:3], y[:3])

    assert not rnn.ending
    assert same(weights(rnn), weights(other))


def test_windows_that_wait_for_an_end_without_end_are_told(monkeypatch):
    monkeypatch.setattr("dnigraph.recurrent.recurrent.MANY", 5)
    rnn = made(boundary="oracle")
    x, y = data(long=3)

    for i in range(4):
        rnn.step(x, y, ends=torch.arange(BATCH) == 1 + i % 2)
    with pytest.warns(UserWarning, match=r"5 windows are kept.* has not ended: step\(..., ends=...\) says which"):
        rnn.step(x, y)


@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.5}, {"boundary": "silent"}, {"boundary": "oracle"}, {"blend": 0.5}]
)
def test_a_learned_first_state_is_met_again_inside_a_window(options):
    rnn = beginning(**options)
    x, y = data(long=6)
    reset = torch.zeros(6, BATCH, dtype=torch.bool)
    reset[1, 0] = reset[4, 1] = reset[5, 0] = True
    before = rnn.initial.weight.clone()

    for _ in range(3):
        rnn.run(x, y, reset=reset)

    assert not torch.equal(before, rnn.initial.weight)


def test_a_learned_first_state_gets_the_gradient_of_every_beginning():
    kept = []

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            kept.extend(p.grad.clone() for group in self.param_groups for p in group["params"] if p.shape == (WIDE,))

    rnn = beginning(boundary="oracle", clip=None, optimizer=lambda p: Keep(p, 0.0))
    x, y = data(long=6)
    reset = torch.zeros(6, BATCH, dtype=torch.bool)
    reset[1, 0] = reset[4, 1] = True
    rnn.run(x, y, reset=reset)

    cell, out, begin = rnn.core.module, rnn.core.readout, rnn.initial
    state, first, outputs = begin(BATCH), begin(BATCH), []
    for t in range(6):
        state = cell(x[t], torch.where(reset[t][:, None], first, state))
        outputs.append(out(state))
    wanted = torch.autograd.grad((torch.stack(outputs) - y).square().mean() * 2, begin.weight)[0]
    torch.testing.assert_close(kept[-1], wanted)


def test_a_state_that_is_given_beside_a_learned_one_gives_the_gradients_of_backprop():
    rnn = beginning(boundary="oracle", clip=None, optimizer=lambda p: torch.optim.SGD(p, 1.0))
    x, y = data(long=6)
    state, reset = torch.randn(BATCH, WIDE, dtype=torch.double), torch.zeros(6, BATCH, dtype=torch.bool)
    reset[0, 0] = reset[4, 1] = True
    plain, out, begin = copy.deepcopy((rnn.core.module, rnn.core.readout, rnn.initial))

    rnn.reset(state)
    rnn.run(x, y, reset=reset)

    outputs = []
    for t in range(6):
        state = plain(x[t], torch.where(reset[t][:, None], begin(BATCH), state))
        outputs.append(out(state))
    parameters = [*plain.parameters(), *out.parameters(), *begin.parameters()]
    wanted = torch.autograd.grad((torch.stack(outputs) - y).square().mean() * 2, parameters)
    moved = [*rnn.core.module.parameters(), *rnn.core.readout.parameters(), *rnn.initial.parameters()]
    for before, after, gradient in zip(parameters, moved, wanted, strict=True):
        torch.testing.assert_close(before - after, gradient)


def test_a_file_of_before_the_first_window_takes_a_run_back(tmp_path):
    rnn, other = made(optimizer=adam), made(optimizer=adam)
    x, y = data()
    other.save(tmp_path / "first.pt")
    rnn.step(x[:3], y[:3])

    rnn.load(tmp_path / "first.pt")
    for one in (rnn, other):
        torch.manual_seed(3)
        one.step(x[3:6], y[3:6])
        one.step(x[6:9], y[6:9])

    assert same(weights(rnn), weights(other))
    assert rnn.steps == 2


def test_a_copy_in_the_middle_of_a_sequence_keeps_the_sum_of_its_gradients():
    rnn = made(update="sequence", optimizer=adam)
    x, y = data()
    rnn.step(x[:3], y[:3], ends=True)
    rnn.step(x[3:6], y[3:6])
    other = copy.deepcopy(rnn)

    for one in (rnn, other):
        one.step(x[6:9], y[6:9], ends=True)

    assert same(weights(rnn), weights(other))


@pytest.mark.parametrize("options", [{"boundary": "oracle"}, {"blend": 0.5}])
@pytest.mark.parametrize("copied", [False, True])
def test_in_the_middle_of_a_sequence_a_learned_first_state_survives(options, copied, tmp_path):
    rnn = beginning(**options)
    x, y = data(long=6)
    rnn.run(x[:3], y[:3], ends=False)
    if copied:
        other = copy.deepcopy(rnn)
    else:
        rnn.save(tmp_path / "run.pt")
        other = beginning(**options)
        other.load(tmp_path / "run.pt")

    for one in (rnn, other):
        one.run(x[3:], y[3:])

    assert same(weights(rnn), weights(other))


@pytest.mark.parametrize(
    "options", [{"blend": 0.5}, {"boundary": "oracle"}, {}, {"update": "sequence"}, {"traces": 0.9}]
)
@pytest.mark.parametrize("where", ["loss", "backward", "core's optimiser", "interrupt"])
def test_a_step_that_failed_can_be_done_again_as_if_it_had_not_been(options, where):
    """The place in the stream, what is counted and stored, and gradients that add up are those of before the step."""

    def once(poisoned):
        failing = [False]

        class Weak(torch.optim.Adam):
            def step(self, closure=None):
                if failing[0] and where == "core's optimiser":
                    raise MemoryError(where)
                return super().step(closure)

        class Bomb(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value):
                return value.clone()

            @staticmethod
            def backward(ctx, gradient):
                if failing[0] and where in ("backward", "interrupt"):
                    raise KeyboardInterrupt(where) if where == "interrupt" else MemoryError(where)
                return gradient

        def loss(output, target):
            if failing[0] and where == "loss":
                raise MemoryError(where)
            return mse(Bomb.apply(output), target)

        rnn = made(optimizer=lambda p: Weak(p, 1e-2), loss=loss, **options)
        x, y = data()
        for begin, end in ((0, False), (3, True), (6, True), (9, True)):
            piece = x[begin : begin + 3], y[begin : begin + 3]
            if poisoned and begin in (3, 6):
                seen = rnn.steps, rnn.ending, rnn.state, weights(rnn)
                failing[0] = True
                with pytest.raises((MemoryError, KeyboardInterrupt), match=where):
                    rnn.step(*piece, ends=end)
                failing[0] = False
                assert (rnn.steps, rnn.ending) == seen[:2] and same(weights(rnn), seen[3])
                assert (rnn.state is None) == (seen[2] is None)
            rnn.step(*piece, ends=end)
        return weights(rnn)

    assert same(once(False), once(True))


def test_a_missing_label_is_told_before_anything_is_stored():
    rnn = made(boundary=dg.blend("dni", 0.5), optimizer=adam, condition=dg.one_hot(3))
    x, y = data()

    with pytest.raises(dg.ConditionError, match="label="):
        rnn.step(x[6:9], y[6:9])

    assert rnn.state is None and rnn.steps == 0


@pytest.mark.parametrize("option", [{"listen_after": 3}, {"discount": 0.5}])
def test_blend_does_not_take_what_it_would_not_heed(option):
    with pytest.raises(dg.RecurrentError, match="do not go together"):
        made(blend=0.5, **option)


def test_the_control_shuffles_among_those_that_go_on():
    torch.manual_seed(1)
    ends = torch.tensor([True, True, False, False, False])
    rows = torch.randn(5, 2)

    for _ in range(5):
        found = guessed(Options(3, "shuffled", InTime(centre=False)), rows, ends, (1.0, 1.0)).core

        assert found[:2].eq(0).all()
        assert torch.equal(found[2:].sort(0).values, rows[2:].sort(0).values)


@pytest.mark.parametrize("options", [{"boundary": "oracle"}, {"blend": 0.5}, {}], ids=str)
def test_statistics_of_layers_see_each_window_once(options):
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(WIDE), nn.Linear(WIDE, OUT), nn.Unflatten(0, (3, BATCH)))
    rnn = dg.Recurrent(nn.GRU(IN, WIDE), horizon=3, loss=mse, optimizer=adam, readout=norm, **bounded(options))
    x, y = data(dtype=torch.float)
    before = int(norm[1].num_batches_tracked)

    rnn.run(x, y)

    assert int(norm[1].num_batches_tracked) - before == 4


def test_numbers_beside_tensors_begin_at_zero_and_again():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.seen = nn.GRUCell(IN, OUT), []

        def forward(self, x, state=None):
            h, n = (x.new_zeros(len(x), OUT), 0) if state is None else state
            self.seen.append(n)
            h = self.cell(x, h)
            return h, (h, n + 1)

    core = Counting()
    rnn = dg.Recurrent(core, horizon=3, loss=mse, optimizer=adam)
    x, y = data(dtype=torch.float)
    rnn.step(x[:3], y[:3])
    rnn.step(x[3:6], y[3:6])
    rnn.step(x[6:9], y[6:9], reset=torch.ones(BATCH, dtype=torch.bool))

    assert core.seen[-9:] == [0, 1, 2, 3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_traces_take_cores_of_little_precision(dtype):
    rnn = made("gru", dtype=dtype, traces=0.9, optimizer=adam)
    x, y = data(dtype=dtype)

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        found = rnn.run(x, y)

    assert found.loss.isfinite() and rnn.skipped == 0


def test_nothing_learns_in_inference_mode_and_that_is_told():
    rnn = made()
    x, y = data()

    with torch.inference_mode(), pytest.raises(dg.RecurrentError, match="inference_mode"):
        rnn.step(x[:3], y[:3])


def test_packed_targets_are_as_long_as_their_inputs():
    rnn = made()
    pack = nn.utils.rnn.pack_padded_sequence
    x, y = data(long=7, batch=3)

    with pytest.raises(dg.RecurrentError, match=r"differ in length: \[7, 2, 4\] and \[2, 7, 4\]"):
        rnn.run(pack(x, [7, 2, 4], enforce_sorted=False), pack(y, [2, 7, 4], enforce_sorted=False))


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def test_a_file_of_a_run_with_another_schedule_is_refused(tmp_path):
    rnn, x_y = made(optimizer=adam), data(long=3)
    rnn.step(*x_y)
    rnn.save(tmp_path / "run.pt")
    other = made(optimizer=adam, scheduler=halved)
    other.step(*x_y)

    with pytest.raises(dg.RecurrentError, match="core: its schedule is StepLR here and None in the file"):
        other.load(tmp_path / "run.pt")


def test_a_schedule_goes_on_from_a_file(tmp_path):
    x, y = data(long=9)
    rnn, other = made(optimizer=adam, scheduler=halved), made(optimizer=adam, scheduler=halved)
    rnn.run(x, y)
    rnn.save(tmp_path / "run.pt")
    other.step(x[:3], y[:3])

    other.load(tmp_path / "run.pt")
    for one in (rnn, other):
        one.step(x[:3], y[:3])

    (scheduler, loaded) = (one._learner.groups["core"].scheduler for one in (rnn, other))
    assert loaded.last_epoch == scheduler.last_epoch == 4
    assert loaded.get_last_lr() == scheduler.get_last_lr() == [0.0025]
