"""The user's own loop: the numbers of `Recurrent.step`, and what a module owes to those who use it."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.streams import BATCH, IN, OUT, STEPS, WIDE, Known, data, mse
from torch import nn

import dnigraph as dg

OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, 0.1), "adam": lambda p: torch.optim.Adam(p, 1e-2)}
BOUNDARIES = {
    "dni": "dni",
    "silent": "silent",
    "strong": dg.dni_in_time(scale=0.5, discount=0.5, cap=1.0, gain=2.0),
    "not centred": dg.dni_in_time(centre=False, decay=0.9),
}
ENDS = torch.tensor([False, True, False, True])
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def stream(batch_first, windows=9, dtype=torch.float):
    x, y = data(long=3 * windows, dtype=dtype)
    for i in range(windows):
        how = {3: {"ends": ENDS}, 5: {"reset": ~ENDS}, 7: {"ends": True}}.get(i, {})
        a, b = x[3 * i : 3 * i + 3], y[3 * i : 3 * i + 3]
        yield (a.movedim(1, 0), b.movedim(1, 0), how) if batch_first else (a, b, how)


def unrolled(name="lstm", dtype=torch.float, **options):
    torch.manual_seed(0)
    step, more = STEPS[name]()
    if "readout" in more:
        more["readout"].to(dtype)
    return dg.unroll(step.to(dtype), window(name, dtype), **more, **options)


def window(name, dtype=torch.float):
    x = torch.zeros(3, BATCH, IN, dtype=dtype)
    return x.movedim(1, 0) if "batch first" in name else x


def learned(rnn, optimizer, name="lstm", scales=(1.0,) * 9, told=False, **more):
    """Losses of a stream, learned from as a user does; they are scaled, which the module may be told."""
    losses = []
    for (x, y, how), scale in zip(stream("batch first" in name), scales, strict=True):
        rnn.loss_scale = scale if told else None
        loss = mse(rnn(x, **how, **more), y)
        optimizer.zero_grad()
        (loss * scale).backward()
        for p in rnn.parameters():
            p.grad = None if p.grad is None else p.grad / scale
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def run(name, optimizer, **options):
    """The same stream, by `Recurrent.step`. Returns it and its losses."""
    torch.manual_seed(0)
    step, more = STEPS[name]()
    rnn = dg.Recurrent(step, horizon=3, loss=mse, optimizer=optimizer, clip=None, **more, **options)
    losses = [float(rnn.step(x, y, **how).loss) for x, y, how in stream("batch first" in name)]
    return rnn, losses


def same(rnn, other):
    one = [p for module in other.modules().values() for p in module.state_dict().values()]
    own = {k: v for k, v in rnn.state_dict().items() if k != "ended"}
    return len(one) == len(own) and all(map(torch.equal, own.values(), one))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", STEPS)
def test_the_loop_of_a_user_gives_bitwise_the_numbers_of_a_run(name, boundary, optimizer):
    make, boundary = OPTIMIZERS[optimizer], BOUNDARIES[boundary]
    other, told = run(name, make, boundary=boundary)
    rnn = unrolled(name, boundary=boundary)

    losses = learned(rnn, make(rnn.parameters()), name)

    assert losses == told and same(rnn, other)


def test_the_head_is_heard_and_learns():
    rnn, silent = unrolled(), unrolled(boundary="silent")
    before = [p.detach().clone() for p in rnn.head.parameters()]

    one, other = (learned(r, torch.optim.SGD(r.parameters(), 0.1)) for r in (rnn, silent))

    assert one[:2] == other[:2] and one != other and silent.head is None
    assert not all(map(torch.equal, before, rnn.head.parameters()))
    assert set(rnn.head.parameters()) <= set(rnn.parameters())


class First(nn.Module):
    """A first state that is learned."""

    def __init__(self):
        super().__init__()
        self.h = nn.Parameter(torch.full((WIDE,), 0.3))

    def forward(self, batch):
        return self.h.expand(batch, -1)


@pytest.mark.parametrize("boundary", ["dni", "silent"])
def test_a_first_state_that_is_learned_learns(boundary):
    make = OPTIMIZERS["sgd"]
    other, told = run("gru cell", make, initial=First(), boundary=boundary)
    rnn = unrolled("gru cell", initial=First(), boundary=boundary)

    losses = learned(rnn, make(rnn.parameters()))

    assert losses == pytest.approx(told, rel=1e-6) and not rnn.initial.h.equal(First().h)
    assert torch.allclose(rnn.initial.h, other.initial.h, atol=1e-6)  # gradients of rows add up in another order


@pytest.mark.parametrize("condition", ["input", "label"])
def test_what_heads_look_at_beside_the_state(condition):
    label = torch.tensor([0, 1, 2, 1])
    options = {"condition": "input" if condition == "input" else dg.one_hot(3)}
    torch.manual_seed(0)
    step, more = STEPS["gru"]()
    other = dg.Recurrent(step, horizon=3, loss=mse, optimizer=OPTIMIZERS["sgd"], clip=None, **more, **options)
    told = [float(other.step(x, y, label=label, **how).loss) for x, y, how in stream(False)]
    torch.manual_seed(0)
    step, more = STEPS["gru"]()
    rnn = dg.unroll(step, window("gru"), **more, **options, label=label)

    assert learned(rnn, torch.optim.SGD(rnn.parameters(), 0.1), label=label) == told and same(rnn, other)
    if condition == "input":
        with pytest.raises(dg.RecurrentError, match="the window has 4 steps, the horizon is 3"):
            rnn(torch.zeros(4, BATCH, IN))
    else:
        with pytest.raises(dg.ConditionError, match="looks at a label, and there is none"):
            rnn(torch.zeros(3, BATCH, IN))


def test_a_scale_of_the_loss_that_changes_is_nothing_to_a_module_that_knows_it():
    scales, strong = [2.0**i for i in range(9)], dg.dni_in_time(scale=1.0, discount=1.0, cap=None)
    plain, scaled, unaware = (unrolled(boundary=strong) for _ in range(3))

    losses = learned(plain, torch.optim.SGD(plain.parameters(), 0.1))

    assert learned(scaled, torch.optim.SGD(scaled.parameters(), 0.1), scales=scales, told=True) == losses
    assert learned(unaware, torch.optim.SGD(unaware.parameters(), 0.1), scales=scales) != pytest.approx(losses)
    with pytest.raises(dg.DniGraphError, match="loss_scale is a GradScaler, a positive number"):
        scaled.loss_scale = -1


def test_outputs_of_any_nesting_hear_the_estimate_once():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.one, self.two = nn.GRU(IN, WIDE), nn.Linear(WIDE, OUT), nn.Linear(WIDE, OUT)

        def forward(self, x, state=None):
            y, state = self.gru(x, state)
            return {"one": self.one(y), "more": (self.two(y), 3)}, state

    def found(which):
        torch.manual_seed(0)
        rnn = dg.unroll(Both(), torch.zeros(3, BATCH, IN), windowed=True, head=lambda spec: Known(torch.sign),
                        boundary=dg.dni_in_time(centre=False, scale=1.0, discount=1.0))  # fmt: skip
        out = rnn(data(dtype=torch.float)[0][:3])
        losses = {"one": out["one"].sum() * 0, "two": out["more"][0].sum() * 0}
        sum(losses[name] for name in which).backward()
        return rnn.core.module.gru.weight_hh_l0.grad

    assert found(["one"]).ne(0).any() and found(["one"]).equal(found(["two"]))
    assert found(["one"]).equal(found(["one", "two"]))


def test_eval_mode_and_no_grad_carry_the_state_and_touch_nothing_else():
    rnn, x = unrolled(), data(dtype=torch.float)[0]
    before = copy.deepcopy(rnn.state_dict())
    rnn.eval()

    out = torch.cat([rnn(x[:3]), rnn(x[3:8])])
    rnn.train()
    with torch.no_grad():
        out = torch.cat([out, rnn(x[8:])])

    assert torch.allclose(out, rnn.core.read(rnn.core.module(x)[0])) and rnn.state is not None
    assert all(map(torch.equal, before.values(), rnn.state_dict().values()))
    state = rnn.state
    rnn.reset()
    assert rnn.state is None
    rnn.reset(state)
    assert torch.allclose(rnn(x[:3]), rnn.core.read(rnn.core.module(x[:3], state)[0]))


def test_where_a_window_was_only_looked_at_the_head_has_nothing_to_learn():
    rnn, (x, y) = unrolled("gru", condition=dg.one_hot(3), label=torch.tensor([0, 1, 2, 1])), data(dtype=torch.float)
    rnn.eval()
    rnn(x[:3])  # without a label: no head speaks
    rnn.train()

    mse(rnn(x[3:6], label=torch.tensor([0, 1, 2, 1])), y[3:6]).backward()

    assert all(p.grad is None for p in rnn.head.parameters()) and rnn.core.module.weight_hh_l0.grad.ne(0).any()


@pytest.mark.parametrize("way", ["copied", "saved"])
def test_a_copy_in_the_middle_of_a_stream_goes_on_bitwise(way, tmp_path):
    def step(rnn, optimizer, i):
        x, y = data(long=3, dtype=torch.float, seed=i)
        loss = mse(rnn(x, ends=i == 5), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    rnn = unrolled(condition="input")
    optimizer = torch.optim.SGD(rnn.parameters(), 0.1)
    for i in range(4):
        step(rnn, optimizer, i)
    if way == "copied":
        other = copy.deepcopy(rnn)
    else:
        torch.save({"model": rnn.state_dict(), "place": rnn.place}, tmp_path / "run.pt")
        kept = torch.load(tmp_path / "run.pt", weights_only=True)
        other = unrolled(condition="input")
        other.load_state_dict(kept["model"])
        other.place = kept["place"]

    losses = [[step(r, torch.optim.SGD(r.parameters(), 0.1), i) for i in range(4, 9)] for r in (rnn, other)]

    assert losses[0] == losses[1]
    assert all(map(torch.equal, rnn.state_dict().values(), other.state_dict().values()))


def test_a_second_backward_pass_through_a_window_is_refused():
    rnn, (x, y) = unrolled(), data(dtype=torch.float)
    loss = mse(rnn(x[:3]), y[:3])
    loss.backward(retain_graph=True)

    with pytest.raises(dg.RecurrentError, match="a second backward pass through a window: its head would learn twice"):
        loss.backward()


def test_a_window_without_a_backward_pass_is_told_once_and_sums_of_losses_are_right():
    rnn, (x, y) = unrolled(), data(dtype=torch.float)
    one = mse(rnn(x[:3]), y[:3])
    with pytest.warns(dg.TrainingWarning, match=r"has had no backward pass: its graph is kept(.|\n)*rnn.eval\(\)"):
        two = mse(rnn(x[3:6]), y[3:6])
    (one + two).backward()
    apart = unrolled()
    for i in (0, 3):
        mse(apart(x[i : i + 3]), y[i : i + 3]).backward()

    assert all(torch.allclose(p.grad, q.grad) for p, q in zip(rnn.parameters(), apart.parameters(), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn(x[:3])
        rnn(x[3:6])


def test_a_window_that_fails_leaves_the_place_as_it_was():
    rnn, x = unrolled(), data(dtype=torch.float)[0]
    mse(rnn(x[:3]), x[:3, :, :OUT]).backward()
    before = rnn.place

    with pytest.raises(dg.RecurrentError, match="the window has 2 sequences, the stream has 4"):
        rnn(x[3:6, :2])

    assert rnn.place == before


def test_under_autocast_the_head_works_in_float32():
    rnn, (x, y) = unrolled("gru cell", head=lambda spec: Known(lambda v: v.sign())), data(dtype=torch.float)
    for i in (0, 3):
        with torch.autocast("cpu", torch.bfloat16):
            out = rnn(x[i : i + 3])
        F.mse_loss(out.float(), y[i : i + 3]).backward()

    assert rnn.head.spec.dtype == torch.float32 and all(p.grad.isfinite().all() for p in rnn.core.parameters())


@pytest.mark.parametrize(
    ("boundary", "words"),
    [
        ("bptt", "boundary='bptt' needs more"),
        ("shuffled", "boundary='shuffled' needs more"),
        (dg.blend("dni", 0.5), r"a schedule \(warm_up, refresh, blend\) needs more"),
        (dg.dni_in_time(traces=0.5), "traces=0.5 needs more"),
        (dg.dni_in_time(auxiliary=True), "auxiliary=0.003 needs more"),
        (dg.dni_in_time(listen_after=3), "listen_after=3 needs more"),
        (dg.dni_in_time(scale=0.3), "scale=0.3 that is not discount=None needs more"),
        (dg.dni_in_time(scale=0.3, traces=0.5), r"traces=0.5(.|\n)*scale=0.3"),
    ],
)
def test_what_needs_two_passes_is_refused_with_the_way_out(boundary, words):
    with pytest.raises(dg.RecurrentError, match=words) as caught:
        unrolled(boundary=boundary)

    assert "dg.Recurrent(...)" in str(caught.value)


def test_a_wrong_module_and_a_wrong_boundary_are_named_together():
    with pytest.raises(dg.RecurrentError, match=r"there are dni, silent(.|\n)*not an nn.Module"):
        dg.unroll(len, torch.zeros(3, 2, 2), boundary="dnu")
