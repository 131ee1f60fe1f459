"""What may be a step: models with feedback edges, decoupled ones; and what the user is told of what does not fit."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.streams import BATCH, IN, OUT, WIDE, Custom, Kept, adam, bounded, data, gradients, made, mse, near, sgd
from torch import nn

import dnigraph as dg


class Remembering(nn.Module):
    """No step module: its memory is one of several inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.inner, self.deep, self.out = nn.Linear(IN + WIDE, WIDE), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, OUT)

    def forward(self, x, memory=None):
        memory = x.new_zeros(len(x), WIDE) if memory is None else memory
        hidden = torch.tanh(self.inner(torch.cat((x, memory), -1)))
        memory = torch.tanh(self.deep(hidden))
        return {"answer": self.out(memory), "new_memory": memory}


class Paired(Remembering):
    def forward(self, x, memory=None):
        found = super().forward(x, memory)
        return found["answer"], found["new_memory"]


def answer(output, target):
    return mse(output["answer"], target)


def by_hand(model, x, y):
    memory, answers = None, []
    for at in x:
        found = model(at, memory)
        memory = found["new_memory"]
        answers.append(found["answer"])
    return torch.autograd.grad(mse(torch.stack(answers), y), [*model.parameters()])


def test_named_feedback_edges_make_a_step_of_any_model():
    model, kept = Remembering().double(), Kept()
    options = {"horizon": 3, "loss": answer, "boundary": "oracle", "optimizer": kept, "clip": None}
    rnn = dg.Recurrent(model, feedback={"memory": "new_memory"}, **options)
    x, y = data()

    found = gradients(rnn, kept, x, y)

    assert near(found, by_hand(model, x, y), 4)


def test_feedback_edges_may_be_positions_of_outputs():
    one, two = Remembering().double(), Paired().double()
    two.load_state_dict(one.state_dict())
    found = []
    for model, edge, loss in ((one, "new_memory", answer), (two, 1, lambda out, target: mse(out[0], target))):
        kept = Kept()
        options = {"horizon": 3, "loss": loss, "optimizer": {"core": kept, "heads": adam}}
        rnn = dg.Recurrent(model, feedback={"memory": edge}, **options)
        found.append(gradients(rnn, kept, *data()))

    assert near(*found)


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
def test_a_decoupled_model_runs_in_time_and_is_backprop_where_both_cuts_are_oracles():
    model = Remembering()
    x, y = data(dtype=torch.float)
    example = (x[0], torch.zeros(BATCH, WIDE))
    dm = dg.decouple(model, "inner", example, boundary="oracle")
    kept = Kept()
    options = {"horizon": 12, "loss": answer, "clip": None, "optimizer": kept}
    rnn = dg.Recurrent(
        dm, feedback={"memory": "new_memory"}, initial=lambda n: {"memory": torch.zeros(n, WIDE)}, **options
    )

    found = gradients(rnn, kept, x, y)

    assert near(found, by_hand(model, x, y), tolerance=1e-6)


def test_a_decoupled_model_learns_inside_and_over_time():
    x, y = data(dtype=torch.float)
    example = (x[0], torch.zeros(BATCH, WIDE))
    dm = dg.decouple(Remembering(), "inner", example, condition=dg.one_hot(3))
    rnn = dg.Recurrent(
        dm, horizon=3, loss=answer, optimizer=lambda p: torch.optim.Adam(p, 1e-2), feedback={"memory": "new_memory"},
        initial=lambda n: {"memory": torch.zeros(n, WIDE)},
    )  # fmt: skip
    label = torch.tensor([0, 1, 2, 0])
    before = [p.clone() for p in dm.boundaries["inner"].parameters()]

    losses = [float(rnn.run(x, y, label=label).loss) for _ in range(30)]

    assert losses[-1] < losses[0]
    assert not all(torch.equal(a, b) for a, b in zip(before, dm.boundaries["inner"].parameters(), strict=True))
    with pytest.raises(dg.RecurrentError, match=r"needs two passes through each window.*\n.*recouple"):
        dg.Recurrent(dm, horizon=3, loss=answer, optimizer=adam, feedback={"memory": "new_memory"},
                     boundary=dg.dni_in_time(scale=0.3))  # fmt: skip


def test_wrong_feedback_edges_are_all_named_with_what_there_is():
    with pytest.raises(dg.RecurrentError) as caught:
        dg.Recurrent(Remembering(), horizon=3, loss=mse, optimizer=adam, feedback={"memry": "a", "states": "b"})
    assert len(caught.value.misfits) == 2
    assert "no input 'memry'; there are x, memory; nearest: memory" in str(caught.value)

    rnn = dg.Recurrent(Remembering(), horizon=3, loss=answer, optimizer=adam, feedback={"memory": "memory"})
    with pytest.raises(
        dg.RecurrentError, match="no output 'memory'; there are answer, new_memory; nearest: new_memory"
    ):
        rnn.step(*(t[:3].float() for t in data()))


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(dg.RecurrentError) as caught:
        made(horizon=0, boundary="silet", update="never")

    said = str(caught.value)
    assert len(caught.value.misfits) == 3
    for words in ("horizon=0", "there are dni, silent, bptt, shuffled; nearest: silent", "there are window, sequence"):
        assert words in said, words


def test_wrong_options_and_a_wrong_module_are_named_together():
    both = nn.LSTM(3, 4, bidirectional=True)

    with pytest.raises(dg.RecurrentError, match=r"horizon=0(.|\n)*LSTM is bidirectional(.|\n)*way out: .*; use one"):
        dg.Recurrent(both, horizon=0, loss=F.mse_loss, optimizer=torch.optim.SGD)


@pytest.mark.parametrize("option", ["traces", "auxiliary"])
def test_the_control_takes_no_option_that_would_change_it(option):
    with pytest.raises(dg.RecurrentError, match="shuffled goes with neither auxiliary nor traces"):
        made(shuffled=True, **{option: 0.5})


def test_all_misfits_of_a_window_are_named_at_once():
    x, y = data(long=5)

    with pytest.raises(dg.RecurrentError) as caught:
        made().step(x, y[:4], mask=torch.ones(3, dtype=torch.bool), reset=torch.zeros(BATCH), ends=torch.ones(9).bool())

    said = str(caught.value)
    assert len(caught.value.misfits) == 5
    for words in (
        "the window has 5 steps, the horizon is 3: rnn.run(...) cuts long sequences",
        "target is [4, 4, 2], but must begin with [5, 4]",
        "mask is [3], but must be [5] (one per step) or [5, 4] (one per entry)",
        "reset must be a tensor of bools",
        "ends is [9], but must be [4]",
        "way out: the order is [time, batch, ...]",
    ):
        assert words in said, words


def test_another_number_of_sequences_in_mid_stream_is_refused_and_a_new_stream_is_not():
    x, y = data()
    rnn = made()
    rnn.step(x[:3], y[:3])

    with pytest.raises(dg.RecurrentError, match=r"the window has 2 sequences, the stream has 4.*\n.*rnn.reset\(\)"):
        rnn.step(x[3:6, :2], y[3:6, :2])
    rnn.reset()
    rnn.step(x[3:6, :2], y[3:6, :2], ends=True)
    rnn.step(x[3:6], y[3:6])


def test_modules_that_are_no_steps_are_refused_with_a_way_out():
    with pytest.raises(dg.RecurrentError, match=r"step is a function, not an nn.Module"):
        dg.Recurrent(lambda x, s: (x, s), horizon=2, loss=mse, optimizer=adam)
    with pytest.raises(dg.RecurrentError, match="bidirectional: its second direction begins at the sequence's end"):
        dg.Recurrent(nn.LSTM(2, 2, bidirectional=True), horizon=2, loss=mse, optimizer=adam)
    rnn = dg.Recurrent(nn.Linear(2, 2), horizon=2, loss=mse, optimizer=adam)
    with pytest.raises(dg.RecurrentError, match=r"Linear.forward\(.*\) -> .*Tensor is no step: a step takes"):
        rnn.step(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2))

    class Alone(nn.Module):
        def forward(self, x, state=None):
            return x

    rnn = dg.Recurrent(Alone(), horizon=2, loss=mse, optimizer=adam, initial=lambda n: torch.zeros(n, 2))
    with pytest.raises(dg.RecurrentError, match=r"Alone returned a Tensor, where a step returns a pair.*\n.*feedback="):
        rnn.step(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2))


def test_a_loss_that_is_no_number_and_an_optimiser_that_is_none_are_refused():
    x, y = data()
    with pytest.raises(dg.RecurrentError, match=r"gave a tensor of shape \[12, 2\], where one number"):
        made(loss=lambda out, target: out - target).step(x[:3], y[:3])
    with pytest.raises(dg.RecurrentError, match="must return a torch optimiser, not a int"):
        made(optimizer=lambda p: 3).step(x[:3], y[:3])
    with pytest.raises(dg.RecurrentError, match="nothing called 'haeds'; nearest: heads"):
        made(optimizer={"core": sgd, "haeds": sgd}).step(x[:3], y[:3])
    with pytest.raises(dg.RecurrentError, match="no optimiser is named for the heads"):
        made(optimizer={"core": sgd}).step(x[:3], y[:3])


def test_in_eval_mode_there_is_no_step():
    rnn = made()
    rnn.core.eval()

    with pytest.raises(dg.RecurrentError, match="eval mode"):
        rnn.step(*(t[:3] for t in data()))
    with pytest.raises(dg.RecurrentError, match="eval mode"):
        rnn.run(*data())


def test_lengths_that_do_not_fit_are_refused():
    x, y = data()

    with pytest.raises(dg.RecurrentError, match=r"lengths is \[2\], but must be \[4\]"):
        made().run(x, y, lengths=[1, 2])
    with pytest.raises(dg.RecurrentError, match="lengths go from 1 to 13, but x has 12 steps"):
        made().run(x, y, lengths=[1, 2, 3, 13])
    with pytest.raises(dg.RecurrentError, match="sequences of several lengths end"):
        made().run(x, y, lengths=[1, 2, 3, 12], ends=False)


def test_a_checkpoint_of_another_model_is_refused_with_every_difference(tmp_path):
    rnn = made()
    rnn.step(*(t[:3] for t in data()))
    rnn.save(tmp_path / "run.pt")

    with pytest.raises(dg.RecurrentError, match=r"module.weight_hh_l0: .* here, .* in the file"):
        made("gru").load(tmp_path / "run.pt")
    other = made(boundary="silent")
    other.step(*(t[:3] for t in data()))
    with pytest.raises(dg.RecurrentError, match=r"boundary='silent' here and 'dni' in the file"):
        other.load(tmp_path / "run.pt")
    (tmp_path / "no.pt").write_bytes(b"nothing")
    with pytest.raises(dg.CheckpointError, match="no checkpoint"):
        made().load(tmp_path / "no.pt")


def test_a_state_may_be_given_and_read():
    rnn = made()
    x, y = data()
    rnn.step(x[:3], y[:3])
    state = rnn.state
    out = rnn.step(x[3:6], y[3:6]).output

    other = made()
    other.reset(state)

    assert torch.equal(other.step(x[3:6], y[3:6]).output, out)
    assert rnn.state[0].shape == (1, BATCH, WIDE) and not rnn.state[0].requires_grad


def test_inputs_and_outputs_may_be_nested():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = Custom()

        def forward(self, x, state=None):
            y, state = self.step(x["left"] + x["right"], state)
            return {"y": y, "twice": 2 * y}, state

    torch.manual_seed(0)
    one = made("custom", optimizer=(first := Kept()), boundary="silent")
    torch.manual_seed(0)
    two = dg.Recurrent(
        Two().double(), horizon=3, loss=lambda o, t: mse(o["twice"] / 2, t["y"]), optimizer=(second := Kept()),
        boundary="silent", clip=None,
    )  # fmt: skip
    x, y = data()

    out = two.run({"left": x / 2, "right": x / 2}, {"y": y}, outputs=True).output

    assert near(second.total(), gradients(one, first, x, y)) and out["twice"].shape == y.shape


def test_tokens_are_inputs_too():
    class Characters(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.rnn, self.out = nn.Embedding(9, 4), nn.LSTM(4, 6), nn.Linear(6, 9)

        def forward(self, x, state=None):
            y, state = self.rnn(self.table(x), state)
            return self.out(y), state

    torch.manual_seed(0)
    rnn = dg.Recurrent(Characters(), horizon=4, loss=F.cross_entropy, optimizer=adam, windowed=True)
    text = torch.arange(33)[:, None].expand(-1, 3) % 9

    losses = [float(rnn.run(text[:-1], text[1:], ends=False).loss) for _ in range(15)]

    assert losses[-1] < 0.5 * losses[0] and not rnn.ending and rnn.state is not None


def test_a_loss_per_entry_may_be_a_field_of_the_output():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = Custom()

        def forward(self, x, state=None):
            y, state = self.step(x[..., :IN], state)
            return {"loss": (y - x[..., IN:]).square().mean(-1)}, state

    x, y = data()
    torch.manual_seed(0)
    one = made("custom", optimizer=(first := Kept()))
    torch.manual_seed(0)
    two = dg.Recurrent(Asking().double(), horizon=3, loss="loss", optimizer=(second := Kept()), clip=None)
    two.core.module.step.load_state_dict(one.core.module.state_dict())

    two.run(torch.cat((x, y), -1))

    count = len([*one.core.parameters()])
    assert near(second.found[0][:count], _first(one, first, x, y)[:count])


def _first(rnn, kept, x, y):
    rnn.run(x, y)
    return kept.found[0]


def test_clips_and_schedules_are_the_users():
    kept = Kept()
    schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)  # noqa: E731  # as a user would write it
    rnn = made(clip=1e-3, optimizer=lambda p: torch.optim.SGD(p, 1.0), scheduler={"core": schedule})
    x, y = data()
    before = [p.detach().clone() for p in rnn.core.parameters()]

    rnn.step(x[:3], y[:3])

    moved = (
        sum(float((a - b.detach()).square().sum()) for a, b in zip(before, rnn.core.parameters(), strict=True)) ** 0.5
    )
    assert moved == pytest.approx(1e-3, rel=1e-3)
    assert rnn._learner.groups["core"].optimizer.param_groups[0]["lr"] == 0.5
    assert kept.found == []


def test_frozen_cores_and_heads_break_nothing():
    rnn = made(optimizer=adam)
    for parameter in rnn.core.module.parameters():
        parameter.requires_grad_(False)
    before = [p.clone() for p in rnn.core.module.parameters()]

    for _ in range(3):
        rnn.run(*data())

    assert all(torch.equal(a, b) for a, b in zip(before, rnn.core.module.parameters(), strict=True))


class Grows(nn.Module):
    """Remembers all steps."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x, state=None):
        state = x[:, None] if state is None else torch.cat((state, x[:, None]), 1)
        return self.out(state.mean(1)), state


class Inner(nn.Module):
    """Takes whole windows, and nobody says so."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x, state=None):
        return self.gru(x, state)


class Named(nn.Module):
    """Returns a dict."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x, state=None):
        state = self.cell(x, state)
        return {"loss": state.square().mean(-1), "scores": state}, state


def window(*shape, **options):
    return torch.zeros(*shape, **options), torch.zeros(*shape[:2], 2)


def gru(out=2):
    return nn.GRU(3, out)


GIVEN = window(2, 4, 3)
MISUSES = {
    "a layer without a state": (lambda: nn.Linear(3, 2), {}, GIVEN, r"Linear.forward\(.*is no step.*\n.*readout="),
    "no batch": (gru, {}, window(4, 3), r"x is \[4, 3\], and a window of this GRU of 3 features is \[time"),
    "no batch, a cell": (lambda: nn.LSTMCell(3, 2), {}, window(4, 3), r"x is \[4, 3\], and a window of this LSTMCell"),
    "other features": (gru, {}, window(2, 4, 5), r"x is \[2, 4, 5\], and a window of this GRU of 3 features"),
    "another dtype": (gru, {}, window(2, 4, 3, dtype=torch.double), r"x is float64, and the weights are float32"),
    "whole numbers": (gru, {}, window(2, 4, 3, dtype=torch.long), r"x is int64, and the weights are float32"),
    "whole windows": (Inner, {}, GIVEN, "is it one that takes whole windows"),
    "a state that grows": (Grows, {"initial": lambda n: torch.zeros(n, 1, 3)}, GIVEN, r"was \[4, 1, 3\] before"),
    "a wider target": (lambda: gru(5), {"loss": mse}, GIVEN, r"called with an output \[8, 5\] of float32 and a target"),
    "a target of classes": (
        gru,
        {"loss": F.cross_entropy},
        (torch.zeros(2, 4, 3), torch.full((2, 4), 7)),
        r"the loss was called with an output \[8, 2\] of float32 and a target \[8\] of int64",
    ),
    "a boundary of one's own": (
        gru,
        {"boundary": lambda *a: None},
        GIVEN,
        "a factory: at a window's end there are dni",
    ),
    "a local loss": (gru, {"boundary": "local-loss"}, GIVEN, "boundary='local-loss': there are dni, silent, bptt"),
    "a replay": (gru, {"boundary": dg.dni(replay=2)}, GIVEN, "replay=2: a head at a window's end replays no earlier"),
    "a field that is not": (Named, {"loss": "los"}, GIVEN, r"no such field; nearest: loss; there are loss, scores"),
    "a field of a tensor": (gru, {"loss": "loss"}, GIVEN, r"no such field: it is a Tensor"),
    "all frozen": (lambda: gru().requires_grad_(False), {}, GIVEN, "nothing learns: all parameters"),
    "a mask of numbers": (gru, {"mask": torch.ones(2)}, GIVEN, "mask must be a tensor of bools"),
}


@pytest.mark.parametrize("which", MISUSES)
def test_a_misuse_is_named_with_its_way_out(which):
    make, options, (x, y), words = MISUSES[which]
    options = {"horizon": 2, "loss": F.mse_loss, "optimizer": torch.optim.Adam, **options}
    given = {"mask": options.pop("mask")} if "mask" in options else {}

    with pytest.raises(dg.RecurrentError) as caught:
        dg.Recurrent(make(), **options).step(x, y, **given)

    said = "\n".join([str(caught.value), *getattr(caught.value.__cause__, "__notes__", ())])
    assert re.search(words, said), said
    assert "way out: " in said


def test_an_error_in_the_middle_of_a_stream_comes_through_with_a_note():
    rnn = made(loss=lambda output, target: (output - target).square().mean() if output.shape == target.shape else 1 / 0)
    x, y = data()
    rnn.step(x[:3], y[:3])

    with pytest.raises(ZeroDivisionError) as caught:
        rnn.step(x[3:6], y[3:6, :, :1])

    assert caught.value.__notes__ == [
        "the loss was called with an output [12, 2] of float64 and a target [12, 1] of float64",
        "in window 1 of the stream",
    ]


@pytest.mark.parametrize(
    "options", [{"boundary": "bptt"}, {"blend": 0.5}, {"listen_after": 2}, {"traces": 0.5}], ids=str
)
def test_a_decoupled_step_names_the_option_that_does_not_go_with_it(options):
    dm = dg.decouple(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "0", (torch.ones(2, 3),), boundary="oracle")

    with pytest.raises(dg.RecurrentError) as caught:
        dg.Recurrent(dm, horizon=2, loss=F.mse_loss, optimizer=torch.optim.Adam, **bounded(options))

    ((name, value),) = options.items()
    assert f"{name}={value!r} needs two passes" in str(caught.value)


def test_a_mask_that_leaves_nothing_is_told_once():
    rnn = made()
    x, y = data(long=3)
    nothing = torch.zeros(3, dtype=torch.bool)

    with pytest.warns(UserWarning, match="no entry of this window counts.*its loss is nan"):
        rnn.step(x, y, mask=nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn.step(x, y, mask=nothing)
    with pytest.warns(UserWarning, match="no entry of these sequences counts.*its loss is nan"):
        made().run(x, y, mask=nothing)


ODD = {
    "a target without tensors": (lambda rnn, x, y: rnn.step(x, "target"), "target is 'target', with no tensor in it"),
    "lengths that are text": (lambda rnn, x, y: rnn.run(x, y, lengths="3"), "lengths='3' is no list of whole numbers"),
    "ends of single sequences in run": (lambda rnn, x, y: rnn.run(x, y, ends=torch.ones(4)), "lengths= says how long"),
    "a state that is none": (lambda rnn, x, y: (rnn.reset(3), rnn.step(x, y)), "the state is nested as|is int"),
    "a state of another form": (
        lambda rnn, x, y: (rnn.reset((torch.ones(2), torch.ones(2))), rnn.step(x, y)),
        r"leaf 0 of the state is \[2\]; for two sequences it is \[1, 2, 5\]",
    ),
    "an empty label": (lambda rnn, x, y: rnn.step(x, y, label=torch.ones(0)), r"label is \[0\]: it has no entry"),
}


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("which", ODD)
def test_odd_arguments_of_a_window_are_named(which, later):
    call, words = ODD[which]
    rnn, (x, y) = made(), data(long=3)
    if later:
        rnn.step(x, y)

    with pytest.raises(dg.RecurrentError, match=words):
        call(rnn, x, y)


@pytest.mark.parametrize("option", ["head", "condition", "scheduler", "initial"])
def test_what_makes_nothing_is_named(option):
    with pytest.raises(dg.DniGraphError, match=rf"{option} factory .*fails: TypeError|TypeError.*\n.*look at head="):
        made(**{option: nn.Linear}).step(*data(long=3))
