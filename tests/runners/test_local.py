"""The runner of one process: who learns when, what it keeps, what it saves."""

import copy
import threading
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, ZOO, EarlyExit, cut_up, labels, loss_of
from torch import nn

import dnigraph as dg


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def runner(name, **options):
    dm, args = cut_up(name, check=False)
    return dg.Local(dm, loss=loss_of, **{"optimizer": adam, **options}), args


def test_a_part_has_learned_before_the_next_one_runs():
    run, args = runner("chain")
    seen = []
    for name, part in run.dm.parts.items():
        part.register_forward_pre_hook(lambda m, a, name=name: seen.append(f"{name} runs"))
    for name, group in run.updates.groups.items():
        group.optimizer.register_step_post_hook(lambda *_, name=name: seen.append(f"{name} learns"))
    run.step(*args, target=labels(4))
    seen.clear()

    run.step(*args, target=labels(4))

    assert seen == [
        "part_0 runs", "part_0 learns", "part_1 runs", "part_1 learns", "dni.bn learns",
        "part_2 runs", "part_2 learns", "dni.fc2 learns",
    ]  # fmt: skip


def test_activations_of_a_part_are_freed_before_the_next_one_runs():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)], nn.Linear(32, CLASSES))
    x, y = torch.randn(64, 32), labels(64)
    dm = dg.decouple(model, ["1", "3", "5"], (x,), boundary="local-loss", condition=dg.one_hot(CLASSES))
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)
    run.step(x, target=y)

    with dg.saved_bytes(excluding=dm.parameters()) as ours:
        run.step(x, target=y)
    with dg.saved_bytes(excluding=model.parameters()) as plain:
        F.cross_entropy(model(x), y).backward()

    assert ours.live == 0
    assert ours.peak < 0.6 * plain.peak


def test_a_part_that_is_handed_nothing_is_freed_too():
    model, x, y = (
        nn.Sequential(*[nn.Linear(32, 32) for _ in range(8)], nn.Linear(32, CLASSES)),
        torch.randn(64, 32),
        labels(64),
    )
    dm = dg.decouple(model, "6", (x,), boundary=dg.silent(), condition=None)
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)
    run.step(x, target=y)

    with dg.saved_bytes(excluding=dm.parameters()) as ours:
        run.step(x, target=y)
    with dg.saved_bytes(excluding=model.parameters()) as part:
        dm.part_0(x)

    assert ours.peak == part.peak


@pytest.mark.parametrize("name", ZOO)
def test_the_loss_falls(name):
    run, args = runner(name)
    args = tuple(a.repeat(4, *[1] * (a.dim() - 1)) for a in args)
    y = labels(len(args[0]) // 4).repeat(4)

    losses = [float(run.step(*args, target=y).loss) for _ in range(40)]

    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_step_says_loss_output_and_metrics():
    run, args = runner("chain")
    for _ in range(3):
        result = run.step(*args, target=labels(4))

    assert result.loss.dim() == 0 and not result.loss.requires_grad
    assert result.output.shape == (4, CLASSES) and not result.output.requires_grad
    assert set(result.metrics) == {"bn", "fc2"} and -1 <= result.metrics["fc2"]["cosine"] <= 1


@pytest.mark.parametrize("name", ["resnet", "tied_weights_and_a_mask_for_all"])
def test_going_on_from_a_file_gives_the_numbers_of_never_having_stopped(name, tmp_path):
    schedule = {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)}
    run, args = runner(name, **schedule)
    torch.manual_seed(5)
    for _ in range(3):
        run.step(*args, target=labels(4))
    run.save(tmp_path / "run.pt")
    expected = [run.step(*args, target=labels(4)).loss for _ in range(4)]

    other, _ = runner(name, **schedule)
    torch.manual_seed(99)
    other.load(tmp_path / "run.pt")
    found = [other.step(*args, target=labels(4)).loss for _ in range(4)]

    assert [float(a) for a in expected] == [float(b) for b in found]
    assert other.steps == 7
    one, two = run.dm.state_dict(), other.dm.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one if isinstance(one[k], torch.Tensor))


def test_a_broken_save_leaves_the_old_file(tmp_path, monkeypatch):
    run, _ = runner("chain")
    run.save(tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()

    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run.save(tmp_path / "run.pt")

    assert (tmp_path / "run.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_file_of_something_else_is_refused(tmp_path):
    run, _ = runner("chain")
    (tmp_path / "other.pt").write_bytes(b"no checkpoint at all")
    torch.save({"format": 1}, tmp_path / "half.pt")

    with pytest.raises(dg.CheckpointError, match="no checkpoint"):
        run.load(tmp_path / "other.pt")
    with pytest.raises(dg.CheckpointError, match="lacks"):
        run.load(tmp_path / "half.pt")


def test_parts_and_heads_can_have_optimisers_schedules_and_clips_of_their_own():
    dm, args = cut_up("chain")
    run = dg.Local(
        dm,
        loss=loss_of,
        optimizer={"part_0": lambda p: torch.optim.SGD(p, 0.0), "heads": lambda p: torch.optim.SGD(p, 0.1), "*": adam},
        scheduler={"part_2": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)},
        clip={"part_1": 1e-6},
    )
    before = {k: v.clone() for k, v in dm.recouple().named_parameters()}

    run.step(*args, target=labels(4))

    now = dict(dm.recouple().named_parameters())
    assert torch.equal(now["fc1.weight"], before["fc1.weight"])
    assert not torch.equal(now["fc3.weight"], before["fc3.weight"])
    assert isinstance(run.updates.groups["dni.bn"].optimizer, torch.optim.SGD)
    assert run.updates.groups["part_2"].optimizer.param_groups[0]["lr"] == 5e-3


def test_clipping_holds_the_norm_of_a_parts_gradient():
    dm, args = cut_up("chain", boundary="oracle")
    run = dg.Local(dm, loss=loss_of, optimizer=lambda p: torch.optim.SGD(p, 1.0), clip=1e-3)
    before = [p.detach().clone() for p in dm.part_2.parameters()]

    run.step(*args, target=labels(4))

    moved = (
        sum(float((p - q.detach()).square().sum()) for p, q in zip(before, dm.part_2.parameters(), strict=True)) ** 0.5
    )
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_unknown_names_and_missing_choices_are_named():
    dm, _ = cut_up("chain")

    with pytest.raises(dg.DniGraphError, match=r"no part or boundary is called 'part_9'.*there are part_0"):
        dg.Local(dm, loss=loss_of, optimizer={"part_9": adam, "*": adam})
    with pytest.raises(dg.DniGraphError, match="no optimiser is named for part_1"):
        dg.Local(dm, loss=loss_of, optimizer={"part_0": adam})


def test_the_loss_may_be_a_field_of_the_output():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, CLASSES)

        def forward(self, x, labels=None):
            scores = self.b(torch.relu(self.a(x)))
            return {"scores": scores, "loss": None if labels is None else F.cross_entropy(scores, labels)}

    x, y = torch.randn(4, 4), labels(4)
    dm = dg.decouple(WithLoss(), "a", (x,), {"labels": y}, condition=dg.one_hot(CLASSES))
    run = dg.Local(dm, loss="loss", optimizer=adam)

    losses = [float(run.step(x, labels=y, target=y).loss) for _ in range(20)]

    assert losses[-1] < losses[0]
    with pytest.raises(dg.DniGraphError, match="must give one number"):
        dg.Local(dm, loss="lost", optimizer=adam).step(x, labels=y, target=y)


def test_a_loss_that_looks_at_another_output_later_is_noticed():
    torch.manual_seed(0)
    x, y = torch.randn(4, 4), labels(4)
    dm = dg.decouple(EarlyExit(), "b", (x,), condition=dg.one_hot(CLASSES))  # the part of the early exit hands on, too
    use = ["late"]
    run = dg.Local(dm, loss=lambda out, t: sum(F.cross_entropy(out[k], t) for k in use), optimizer=adam)
    run.step(x, target=y)
    run.step(x, target=y)

    use.append("early")
    with pytest.raises(dg.DniGraphError, match="the loss looks at output"):
        run.step(x, target=y)

    assert run.step(x, target=y).loss > 0


def test_frozen_parts_and_parts_without_gradient_break_nothing():
    dm, args = cut_up("chain")
    for parameter in dm.part_1.parameters():
        parameter.requires_grad_(False)
    run = dg.Local(dm, loss=loss_of, optimizer=adam)
    before = copy.deepcopy(dm.recouple().state_dict())

    for _ in range(3):
        run.step(*args, target=labels(4))

    after = dm.recouple().state_dict()
    assert torch.equal(before["fc2.weight"], after["fc2.weight"])
    assert not torch.equal(before["fc3.weight"], after["fc3.weight"])


def test_in_eval_mode_and_without_a_decoupled_model_there_is_no_step():
    run, args = runner("chain")
    run.dm.eval()

    with pytest.raises(dg.DniGraphError, match="eval mode"):
        run.step(*args, target=labels(4))
    with pytest.raises(dg.DniGraphError, match="Local trains what decouple"):
        dg.Local(nn.Linear(2, 2), loss=loss_of, optimizer=adam)


def test_a_probe_leaves_no_trace_and_an_oracle_points_the_right_way():
    dm, args = cut_up("resnet", boundary="oracle", condition=None)
    before, random = copy.deepcopy(dm.state_dict()), torch.get_rng_state()

    found = dg.probe(dm, *args, target=labels(4), loss=loss_of)

    assert all(c == pytest.approx(1) for c in [*found.crossings.values(), *found.weights.values()])
    after = dm.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) and torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in dm.parameters())


def test_a_part_that_hands_nothing_on_still_runs():
    class Clamping(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                self.b.weight.clamp_(-0.1, 0.1)
            return self.c(self.b(self.a(x)))

    model = Clamping()
    dm = dg.decouple(model, 3, (torch.ones(2, 4),), boundary="oracle")
    run = dg.Local(dm, loss=lambda out, _: out.square().mean(), optimizer=lambda p: torch.optim.SGD(p, 0.0))

    run.step(torch.ones(2, 4), target=None)

    assert model.b.weight.abs().max() <= 0.1


class ReadsViews(nn.Module):
    """A parameter's view is read on both sides of every cut: it crosses them all."""

    def __init__(self, view):
        super().__init__()
        self.view = view
        self.table = nn.Parameter(torch.randn(1, 9, 8))
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        view = self.view(self.table, x)
        h = self.a(x + view).relu()
        return self.c(self.b(h + view).relu() * view).mean(1)


VIEWS = {
    "a slice": lambda table, x: table[:, : x.shape[1]],
    "one row for all samples": lambda table, x: table[:, :5].expand(len(x), -1, -1),
    "a transposition of a detached parameter": lambda table, x: table.detach().mT.mT[:, :5],
    "its own numbers, without gradient": lambda table, x: table.data.narrow(1, 2, 5),
}


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize("view", VIEWS)
def test_an_update_does_not_reach_what_later_parts_read(view):
    x, y = torch.randn(4, 5, 8), labels(4)

    def losses(local):
        torch.manual_seed(0)
        dm = dg.decouple(ReadsViews(VIEWS[view]), ["a", "b"], (x,), condition=dg.one_hot(CLASSES)).train()
        if local:
            run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.5))
            return [float(run.step(x, target=y).loss) for _ in range(4)]
        optimizer, found = torch.optim.SGD(dm.parameters(), 0.5), []
        for _ in range(4):
            optimizer.zero_grad()
            with dm.conditioned(y):
                loss = F.cross_entropy(dm(x), y)
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    assert losses(local=True) == losses(local=False)


class Checkpointed(torch.autograd.Function):
    """Finds the weights of a module in its backward pass, as checkpoint functions and reversible blocks do."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(gradient)
        return x.grad, None


class HidesWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.hidden, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.c(Checkpointed.apply(self.a(x).relu(), self.hidden).relu())


class HidesInAClosure(HidesWeights):
    def forward(self, x):
        return self.c(Checkpointed.apply(self.a(x).relu(), lambda h: self.hidden(h).tanh()).relu())


def test_what_an_autograd_function_is_handed_belongs_to_the_part_that_calls_it():
    dm = dg.decouple(HidesWeights(), ["a", dg.before("c")], (torch.randn(4, 8),), boundary="oracle")

    owners = [name for name, part in dm.parts.items() for p in part.parameters() if p is dm.original.hidden.weight]

    assert owners == ["part_1"]
    assert {"hidden.weight", "hidden.bias", "a.weight"} <= dm.parameters_below()


@pytest.mark.parametrize("cut", [dg.before("c"), "a", ["a", dg.before("c")]])
@pytest.mark.parametrize("hides", [HidesWeights, HidesInAClosure])
def test_weights_that_no_graph_reads_are_trained_as_in_drop_in_training(cut, hides):
    x, y, weights = torch.randn(4, 8), labels(4), []
    for local in (True, False):
        torch.manual_seed(0)
        dm = dg.decouple(hides(), cut, (x,), condition=dg.one_hot(CLASSES)).train()
        optimizer = torch.optim.SGD(dm.parameters(), 0.5)
        run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.5))
        for _ in range(5):
            if local:
                run.step(x, target=y)
                continue
            optimizer.zero_grad()
            with dm.conditioned(y):
                loss = F.cross_entropy(dm(x), y)
            loss.backward()
            optimizer.step()
        weights.append(dict(dm.original.named_parameters()))

    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_label_of_its_own_lets_the_target_have_any_form():
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), labels(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(CLASSES))
    run = dg.Local(dm, loss=lambda scores, t: F.cross_entropy(scores, t["class"]) * t["weight"], optimizer=adam)

    for _ in range(3):
        run.step(x, target={"class": y, "weight": 0.5}, label=y)
    with dm.conditioned(y):
        run.step(x, target={"class": y, "weight": 0.5})

    assert run.steps == 4
    with pytest.raises(dg.ConditionError, match=r"label="):
        run.step(x, target={"class": y, "weight": 0.5})


def test_a_label_beside_the_target_is_what_the_heads_see(monkeypatch):
    x, y = torch.randn(4, 6), labels(4)
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES)), "0", (x,), condition=dg.one_hot(CLASSES))
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)
    seen = []
    visit = dm.boundaries["0"].visit
    monkeypatch.setattr(dm.boundaries["0"], "visit", lambda value, now: (seen.append(now.label), visit(value, now))[1])

    run.step(x, target=y)
    run.step(x, target=y, label=y.flip(0))
    with dm.conditioned(y + 0):
        run.step(x, target=y.flip(0))

    assert [torch.equal(label, expected) for label, expected in zip(seen, [y, y.flip(0), y], strict=True)] == [True] * 3


def test_misuse_is_told_with_the_way_out_and_all_at_once():
    x, y = torch.randn(4, 6), labels(4)
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES)), "0", (x,), condition=dg.one_hot(CLASSES))

    with pytest.raises(dg.DniGraphError) as error:
        dg.Local(dm, loss=nn.CrossEntropyLoss, optimizer=torch.optim.Adam(dm.parameters()), clip=0, monitor=-1)
    assert all(
        words in str(error.value) for words in ("CrossEntropyLoss()", "lambda params: Adam", "clip=0", "monitor=-1")
    )
    with pytest.raises(dg.DniGraphError, match=r"target= for the loss"):
        dg.Local(dm, loss=F.cross_entropy, optimizer=adam).step(x, y)
    with pytest.raises(dg.DniGraphError, match=r"\.module"):
        dg.Local(nn.DataParallel(dm), loss=F.cross_entropy, optimizer=adam)


def test_a_schedule_may_look_at_the_loss():
    x, y = torch.randn(4, 6), labels(4)
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES)), "0", (x,), condition=dg.one_hot(CLASSES))
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", factor=0.1, patience=0)
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam, scheduler=plateau)

    for _ in range(10):  # the loss falls, so that it is never above the first one
        run.step(x, target=y)

    assert run.updates.groups["part_0"].optimizer.param_groups[0]["lr"] < 1e-4


def test_a_trainer_counts_saves_and_schedules_one_optimiser_in_place_of_all():
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), labels(4)

    def fresh():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(CLASSES))
        return dg.Local(dm, loss=F.cross_entropy, optimizer=adam)

    run = fresh()
    optimizer = run.optimizer()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    losses = []
    for _ in range(3):
        losses.append(optimizer.step(lambda: run.step(x, target=y).loss))
        schedule.step()
    again = fresh()
    again.dm.load_state_dict(run.dm.state_dict())
    again.optimizer().load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert losses[2] < losses[0] and run.steps == 3
    assert run.updates.groups["part_0"].optimizer.param_groups[0]["lr"] == 1e-2 / 8
    assert torch.equal(run.step(x, target=y).loss, again.step(x, target=y).loss) and again.steps == 4


def test_one_thread_waits_for_the_step_of_another(tmp_path):
    x, y = torch.randn(4, 6), labels(4)
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES)), "0", (x,), condition=dg.one_hot(CLASSES))
    inside, on = threading.Event(), threading.Event()
    first = True

    def loss(output, target):
        nonlocal first
        if first:
            first = False
            inside.set()
            assert on.wait(60)
        return F.cross_entropy(output, target)

    run = dg.Local(dm, loss=loss, optimizer=adam)
    threads = [
        threading.Thread(target=lambda: run.step(x, target=y)),
        threading.Thread(target=lambda: run.save(tmp_path / "a")),
    ]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    waited = threads[1].is_alive()
    on.set()
    for thread in threads:
        thread.join(60)

    assert waited and torch.load(tmp_path / "a")["steps"] == 1


def test_one_of_several_processes_is_told_that_weights_drift_apart(monkeypatch):
    x, y = torch.randn(4, 6), labels(4)
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES)), "0", (x,), condition=dg.one_hot(CLASSES))
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 4)

    with pytest.warns(UserWarning, match="one of 4 processes.*DistributedDataParallel"):
        run.step(x, target=y)
    run.step(x, target=y)  # a second warning would be an error


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
def test_a_loss_that_is_not_finite_is_told_once_and_before_anything_learns_from_it(number):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    factors = iter([1.0, number, number, 1.0])
    run = dg.Local(dg.decouple(model, "0", (x,)), loss=lambda y, _: y.square().mean() * next(factors), optimizer=adam)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", dg.TrainingWarning)
        seen = [(run.step(x), len(told))[1] for _ in range(4)]

    assert seen == [0, 1, 1, 1]
    assert f"the loss is {number}, in step 2" in str(told[0].message)
    assert told[0].filename == __file__


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning", "error::dnigraph.TrainingWarning")
def test_where_warnings_are_errors_a_loss_that_is_not_finite_leaves_the_last_part_as_it_was():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    run = dg.Local(dg.decouple(model, "0", (x,)), loss=lambda y, t: y.mean() * t, optimizer=adam)
    run.step(x, target=1.0)
    before = copy.deepcopy(model[1].state_dict())

    with pytest.raises(dg.TrainingWarning):
        run.step(x, target=float("nan"))

    assert all(torch.equal(before[name], tensor) for name, tensor in model[1].state_dict().items())


LOSSES_WITHOUT_GRADIENT = {
    "detached": lambda y, t: F.mse_loss(y.detach(), t),
    "of its data": lambda y, t: (y.data - t).square().mean(),
    "a new tensor": lambda y, t: torch.tensor((y - t).square().mean().item()),
}


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize("which", LOSSES_WITHOUT_GRADIENT)
def test_a_loss_that_carries_no_gradient_is_told_once(which):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    run = dg.Local(dg.decouple(model, "0", (x,)), loss=LOSSES_WITHOUT_GRADIENT[which], optimizer=adam)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", dg.TrainingWarning)
        seen = [(run.step(x, target=torch.zeros(3, 2)), len(told))[1] for _ in range(3)]

    assert seen == [1, 1, 1]
    assert "the loss carries no gradient" in str(told[0].message)
    assert told[0].filename == __file__


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning", "error::dnigraph.TrainingWarning")
def test_a_model_whose_last_part_is_frozen_has_no_gradient_to_miss():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    dm = dg.decouple(model, [], (x,))
    model.requires_grad_(False)
    dg.Local(dm, loss=F.mse_loss, optimizer=adam).step(x, target=torch.zeros(3, 2))


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize(
    ("loss", "target", "words"),
    [
        (F.cross_entropy, None, r"TypeError.*the output is \[3, 2\] float32, the target None; give it by name"),
        (F.cross_entropy, torch.zeros(5, dtype=torch.long), r"ValueError.*the target \[5\] int64$"),
        (lambda y, t: t["no"], {"yes": 1}, None),
        (lambda y, t: y.no_such_thing, 1.0, "AttributeError.*the target a float$"),
    ],
)
def test_a_loss_that_fails_says_what_it_was_given(loss, target, words):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    run = dg.Local(dg.decouple(model, "0", (x,)), loss=loss, optimizer=adam)

    with pytest.raises(dg.DniGraphError if words else KeyError, match=words and f"the loss fails: {words}") as told:
        run.step(x, target=target)

    assert words is None or told.value.__cause__ is not None


def test_a_boundary_that_the_step_did_not_visit_has_no_metrics_in_it():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.side, self.top = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.low(x).relu()
            return self.top(self.side(h).relu() if len(x) > 2 else h)

    x = torch.randn(4, 4)
    dm = dg.decouple(Fork(), ["low", "side"], (x,), condition=dg.one_hot(3), boundary=dg.dni(guard=False))
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1))

    for _ in range(3):  # at first the upper head says nothing, so that nothing reaches the lower one
        both = run.step(x, target=torch.tensor([0, 1, 2, 0])).metrics
    one = run.step(x[:2], target=torch.tensor([0, 1])).metrics

    assert all(both.values())
    assert {name: bool(seen) for name, seen in one.items()} == {"low": True, "side": False}
