"""The last rung: models that decide anew in every step are cut between their modules, and run whole."""

import copy
import random
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, ZOO, Moody, Skipping, X, labels, loss_of
from kit.side_by_side import Net, differences, x
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import dnigraph as dg


class Repeating(nn.Module):
    """One module as often as the argument says."""

    def __init__(self):
        super().__init__()
        self.inside, self.body, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x, times=1):
        h = self.inside(x)
        for _ in range(times):
            h = torch.relu(self.body(h))
        return self.out(h)


def hooked(model, cuts, *args, **options):
    return dg.decouple(
        model,
        cuts,
        args or (X,),
        **{"capture": "hooks", "condition": dg.one_hot(CLASSES), "boundary": "dni", **options},
    )


def wrongly(model, cuts):
    """With heads that always say nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hooked(
            model, cuts, head=lambda spec: Handed(spec, 0.0), condition=None, check=False, boundary=dg.dni(guard=False)
        )


def seeded(run, *args):
    random.seed(3)
    torch.manual_seed(3)
    return run(*args)


def count_of_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def gradients(model):
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


class Handed(nn.Module):
    """A head that always predicts the same number."""

    def __init__(self, spec, value):
        super().__init__()
        self.weight, self.value = nn.Parameter(torch.zeros(())), value

    def forward(self, h, label=None):
        return self.weight * h + self.value


def test_the_forward_pass_is_bitwise_that_of_the_model_in_every_mood():
    model = Moody()
    dm = hooked(model, ["norm", "b"])

    for seed in range(8):
        for mode in (True, False):
            dm.train(mode)
            state = copy.deepcopy(model.state_dict())
            results = []
            for run in (model, dm):
                model.load_state_dict(state)
                random.seed(seed)
                torch.manual_seed(seed)
                results.append((run(X)["y"], model.norm.running_mean.clone(), torch.rand(1), random.random()))
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*results, strict=True))


def test_with_oracles_gradients_are_backprops():
    model = Moody()
    dm = hooked(model, ["a", dg.before("b"), "b", dg.cut], boundary="oracle")

    seeded(model, X)["y"].square().sum().backward()
    expected = gradients(model)
    model.zero_grad()
    seeded(dm, X)["y"].square().sum().backward()

    assert len(dm.boundaries) == 4
    assert all(torch.equal(g, expected[n]) for n, g in gradients(model).items())


def test_below_the_cut_only_the_prediction_arrives_and_above_it_the_truth():
    model = Moody()
    dm = wrongly(model, "norm")

    seeded(model, X)["y"].square().sum().backward()
    expected = gradients(model)
    model.zero_grad()
    seeded(dm, X)["y"].square().sum().backward()
    found = gradients(model)

    assert found["a.weight"].eq(0).all()
    assert found["norm.weight"].eq(0).all()
    assert expected["a.weight"].ne(0).any()
    assert all(torch.equal(found[n], expected[n]) for n in found if n[0] in "bc")


def test_heads_and_parts_learn():
    torch.manual_seed(0)
    dm = hooked(Moody(), ["norm", "b"])
    y = labels(6)
    optimizer = torch.optim.Adam(dm.parameters(), 1e-2)
    before = {n: p.detach().clone() for n, p in dm.named_parameters()}
    losses = []

    for _ in range(60):
        with dm.conditioned(y):
            loss = F.cross_entropy(dm(X)["y"], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(not torch.equal(p, before[n]) for n, p in dm.named_parameters() if "label" not in n)


# What hooks cut at the same values as a graph: the others have cuts at what no module hands on.
@pytest.mark.parametrize(
    "name",
    [
        "chain",
        "resnet",
        "two_towers",
        "a_module_called_twice",
        "tied_weights_and_a_mask_for_all",
        "early_exit",
    ],
)
def test_hooks_learn_what_the_graph_learns(name):
    def trained(capture):
        torch.manual_seed(0)
        model, args, cuts = ZOO[name]()
        dm = dg.decouple(
            model.train(), cuts, args, capture=capture, condition=dg.one_hot(CLASSES), boundary=dg.dni(guard=False)
        )
        optimizer = torch.optim.SGD(dm.parameters(), 0.05)
        y = labels(len(args[0]))
        for step in range(4):
            torch.manual_seed(step)
            with dm.conditioned(y):
                loss = loss_of(dm(*args), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return dm

    one, other = trained("record"), trained("hooks")

    assert list(one.boundaries) == list(other.boundaries)
    for (n, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-6), n


def test_a_skip_that_leaks_is_counted_and_warned_of():
    with pytest.warns(dg.HooksWarning, match="leak around the cuts through a to 2 parameters below them: a.bias"):
        dm = hooked(Skipping(), "b")

    leaks = dm.plan.notes[-1]
    assert leaks.startswith("true gradients leak around the cuts through a")
    assert [c.name for c in dm.plan.crossings if c.gradient] == ["b"]
    assert dg.check(dm, X).right


def test_a_leak_is_no_silent_cut():
    dm = wrongly(Skipping(), "b")

    dm(X).square().sum().backward()

    assert dm.original.b.weight.grad.eq(0).all()
    assert dm.original.a.weight.grad.ne(0).any()


def test_between_places_that_learn_nothing_is_warned_of(recwarn):
    hooked(Moody(), "b")

    assert not [w for w in recwarn if issubclass(w.category, dg.HooksWarning)]


@pytest.mark.parametrize(
    ("cuts", "crossings"),
    [
        ("norm", ["norm"]),
        (dg.after("b.0"), ["b.0"]),
        (dg.before("b"), ["b_in"]),
        ("b.*", ["b.0", "b.1", "b.2"]),
        ("re:(a|norm)", ["a", "norm"]),
        (nn.BatchNorm1d, ["norm"]),
        (dg.cut, ["middle"]),
        (None, ["middle"]),
        ("middle", ["middle"]),
        (lambda node: node.name == "a", ["a"]),
        ([], []),
    ],
)
def test_cuts_are_said_as_on_every_rung(cuts, crossings):
    dm = hooked(Moody(), cuts)

    assert [c.name for c in dm.plan.crossings if c.gradient] == crossings
    assert list(dm.boundaries) == crossings


@pytest.mark.parametrize("cost", ["flops", "time", "memory"])
def test_a_number_of_parts_is_balanced(cost):
    dm = hooked(Moody(), dg.balanced(3, cost=cost))

    assert len(dm.plan.parts) == 3
    assert all(part.parameters for part in dm.plan.parts)


def test_a_plan_made_before_cuts_the_same():
    plan = dg.plan(Moody(), ["norm", "b"], (X,), capture="hooks")

    dm = hooked(Moody(), plan)

    assert [c.name for c in dm.plan.crossings] == [c.name for c in plan.crossings]
    assert plan.capture == "hooks"


def test_no_hook_is_left_on_the_model_also_after_an_error():
    model = Moody()
    dm = hooked(model, "b")
    with dm.conditioned(labels(6)):
        dm(X)["y"].sum().backward()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dm(torch.randn(6, 5))

    assert count_of_hooks(model) == 0


def test_other_threads_call_the_model_unhooked():
    model = Skipping()
    dm = wrongly(model, "a")
    inside, done = threading.Event(), threading.Event()
    seen = []

    def look():
        inside.wait()
        model.b.register_forward_pre_hook(lambda *_: None).remove()
        out = model.a(X)
        seen.append(type(out.grad_fn).__name__)
        done.set()

    def wait(*_):
        inside.set()
        done.wait(5)

    handle = model.b.register_forward_hook(wait)
    thread = threading.Thread(target=look)
    thread.start()
    dm(X)
    thread.join()
    handle.remove()

    assert seen == ["AddmmBackward0"]


def test_further_calls_of_a_cut_module_get_boundaries_of_their_own():
    dm = dg.decouple(Repeating(), "body", (X,), capture="hooks", head="linear", condition=dg.one_hot(CLASSES))

    with (
        dm.conditioned(labels(6)),
        pytest.warns(UserWarning, match=r"new way through the model, with a boundary on 'body@2'"),
    ):
        out = dm(X, times=2)
    out.sum().backward()

    assert list(dm.boundaries) == ["body", "body@2"]
    assert any("head" in key and "body@2" in key for key in dm.state_dict())


def test_a_cut_inside_a_checkpointed_region_learns():
    class Checkpointed(Skipping):
        def forward(self, x):
            def region(h):
                return F.relu(self.b(torch.sigmoid(self.a(h))))

            return self.c(checkpoint(region, x, use_reentrant=False))

    model = Checkpointed()
    dm = hooked(model, "a", head="mlp")
    optimizer = torch.optim.SGD(dm.parameters(), 0.1)
    before = [p.detach().clone() for p in dm.parameters()]

    for _ in range(2):
        with dm.conditioned(labels(6)):
            loss = dm(X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert dg.check(dm, X).right
    assert sum(not torch.equal(p, b) for p, b in zip(dm.parameters(), before, strict=True)) > len(before) - 3


def test_in_eval_mode_and_without_gradients_the_model_runs_as_it_is():
    model = Moody()
    dm = hooked(model, "b")
    seen = []
    model.a.register_forward_hook(lambda *_: seen.append(count_of_hooks(model)))

    with torch.no_grad():
        dm(X)
    dm.eval()
    dm(X)

    assert seen == [1, 1]


def test_a_copy_learns_on_its_own():
    dm = hooked(Moody(), "b")
    other = copy.deepcopy(dm)

    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)

    assert all(not torch.equal(p, q) for p, q in zip(dm.parameters(), other.parameters(), strict=True))
    assert list(other.boundaries) == ["b"]
    assert dg.check(other, X).right


def test_state_goes_there_and_back():
    dm, other = hooked(Moody(), "b"), hooked(Moody(), "b")

    other.load_state_dict(dm.state_dict())
    Moody().load_state_dict(dm.recouple().state_dict())

    assert all(torch.equal(v, other.state_dict()[k]) for k, v in dm.state_dict().items())
    assert set(dm.original.state_dict()) < set(dm.state_dict())


def test_part_by_part_training_is_refused_with_the_way_out():
    dm = hooked(Moody(), "b")

    with pytest.raises(dg.DniGraphError, match=r"runs whole, on hooks .*: train it drop-in"):
        dg.Local(dm, loss=loss_of, optimizer=torch.optim.Adam)


def test_a_probe_compares_with_the_truth_by_part():
    dm = hooked(Moody(), "b", head="linear")

    found = seeded(lambda: dg.probe(dm, X, target=labels(6), loss=lambda out, y: F.cross_entropy(out["y"], y)))

    assert set(found.crossings) == {"b"}
    assert set(found.weights) == {"part_0", "part_1"}


def test_a_model_whose_results_carry_no_gradient_is_refused():
    class Blind(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(dg.CaptureError, match="no result of this call carries a gradient"):
        dg.decouple(Blind(4, 4), [], (X,), capture="hooks")


def test_behind_a_convolution_along_a_line_the_length_may_be_another():
    class Wave(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(2) * (2 if random.random() < 0.5 else 1)

    dm = hooked(Wave(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, CLASSES, 3)), "1", torch.randn(4, 2, 20))

    for length in (20, 33):
        with dm.conditioned(labels(4)):
            dm(torch.randn(4, 2, length)).sum().backward()

    assert dm.boundaries["1"].spec.kind == "maps"


def random_in_one_kind_of_call(net, v, noisy=False):
    h = net.a(v).relu()
    return net.c(h * random.random() if noisy else h)


def test_a_call_that_no_graph_can_stand_for_steps_down_in_mid_training():
    calls = [(x(4, k), {"noisy": k % 2 == 1}) for k in range(6)]
    with pytest.warns(dg.HooksWarning, match="such calls run on hooks") as told:
        found, dm = differences(lambda: Net(random_in_one_kind_of_call), calls, quiet=False)

    assert found == [] and len(told.list) == 1 and dm.plan.capture == "record"
    assert set(dm.boundaries) == {"a"}  # the same boundary on both rungs


def test_what_steps_down_hears_its_boundary_and_is_copied():
    torch.manual_seed(0)
    dm = dg.decouple(Net(random_in_one_kind_of_call), "a", (x(),), boundary=dg.silent())
    with pytest.warns(dg.HooksWarning):
        dm(x(), noisy=True).sum().backward()
    assert dm.original.a.weight.grad is None or not dm.original.a.weight.grad.any()
    assert dm.original.c.weight.grad.any()

    twin = copy.deepcopy(dm)
    twin(x(), noisy=True).sum().backward()
    assert torch.equal(dm.original.a.weight, twin.original.a.weight)
    assert twin.original.a.weight.grad is None or not twin.original.a.weight.grad.any()


def test_a_rung_that_was_asked_for_is_not_left():
    dm = dg.decouple(Net(random_in_one_kind_of_call), "a", (x(),), boundary="oracle", capture="record")

    with pytest.raises(dg.CaptureError):
        dm(x(), noisy=True)


class Jagged(nn.Module):
    """Takes sequences of any lengths, each a row of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        return self.c(torch.stack([row.mean(0) for row in h.unbind()]))


def sequences(*lengths, layout=torch.jagged, width=6):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the strided layout is a prototype
        return torch.nested.nested_tensor([torch.randn(n, width) for n in lengths], layout=layout)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cuts", ["a", 2, ["a", "b"]])
@pytest.mark.parametrize("boundary", ["oracle", dg.dni(guard=False)])
def test_rows_of_jagged_tensors_cross_a_cut(cuts, boundary):
    torch.manual_seed(0)
    model = Jagged()
    dm = dg.decouple(model, cuts, sequences(3, 5, 2), boundary=boundary)

    for batch in (sequences(3, 5, 2), sequences(1, 4)):
        dm(batch).square().sum().backward()
        ours = [p.grad.clone() for p in dm.model_parameters()]
        dm.zero_grad()
        model(batch).square().sum().backward()
        true = [p.grad.clone() for p in model.parameters()]
        dm.zero_grad()
        same = [torch.equal(mine, other) for mine, other in zip(ours, true, strict=True)]
        assert all(same) if boundary == "oracle" else all(same[-2:]) and not any(same[:2])
    assert {crossing.shape for crossing in dm.plan.crossings} == {(10, 6)}


class Derived(nn.Module):
    """Reads a derivative of one of its modules, by forward-mode differentiation."""

    def __init__(self):
        super().__init__()
        self.a, self.f, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.a(x).tanh()
        with forward_ad.dual_level():
            y, slope = forward_ad.unpack_dual(self.f(forward_ad.make_dual(h, torch.ones_like(h))))
            slope = slope.clone()
        return self.c(y + slope)


def test_modules_inside_forward_mode_differentiation_are_left_alone():
    model, x = Derived(), torch.randn(4, 6)

    dm = dg.decouple(model, "a", x, boundary="oracle")

    assert torch.equal(dm(x), model(x))
    assert dm.plan.crossings[0].name == "a"


class Frozen(Jagged):
    def forward(self, x):
        with torch.no_grad():
            h = self.a(x)
        return self.c(self.b(h).relu())


class Mapped(Jagged):
    def forward(self, x):
        return self.c(torch.func.vmap(self.a)(self.b(x)))


@pytest.mark.parametrize(
    ("model", "cut", "x", "why"),
    [
        (Derived(), "f", torch.randn(4, 6), "ran inside a level of forward-mode AD"),
        (Frozen(), "a", torch.randn(4, 6), "ran without gradients.*use_reentrant=False"),
        (Mapped(), "a", torch.randn(4, 6), "ran inside a torch.func transform"),
        (Jagged(), "a", sequences(3, 2, layout=torch.strided), "nested tensors that are not of layout=torch.jagged"),
    ],
    ids=["forward AD", "no_grad", "vmap", "nested"],
)
def test_a_module_that_ran_where_nothing_can_be_cut_is_told_so(model, cut, x, why):
    with pytest.raises(dg.CutError, match=f"cut '{cut}': is a module that .*{why}"):
        dg.decouple(model, cut, x, capture="hooks")


def remembers_keys(net, v, cached=False):
    keys = net.a(v)
    if cached:  # past keys are no longer learned from
        net.kept.append(keys.detach())
        keys = torch.cat(net.kept, 1)
    return net.c((v @ keys.transpose(1, 2)).softmax(-1) @ keys)


def skips_its_first_layer(net, v, short=False):
    return net.c(v * random.random() if short else net.a(v))


def draws_without_gradients_below(net, v, frozen=False):
    if not frozen:
        return net.c(net.a(v))
    with torch.no_grad():
        h = net.a(v) * random.random()
    return net.c(h)


@pytest.mark.parametrize("forward", [remembers_keys, skips_its_first_layer, draws_without_gradients_below])
def test_a_further_call_that_steps_down_may_lack_the_cut_module(forward):
    calls = [(x(4, 0, 3), False), (x(4, 1, 1), True), (x(4, 2, 1), True), (x(4, 3, 2), False)]

    found, dm = differences(lambda: Net(forward, kept=[]), calls)

    assert (found, dm.plan.capture) == ([], "record")


def test_a_call_in_which_nothing_is_cut_says_that_its_gradients_are_true():
    dm = dg.decouple(Net(skips_its_first_layer), "a", x(4, 0, 3), boundary="oracle")

    with pytest.warns(UserWarning, match="with true gradients, since none of the cuts can be made in them"):
        dm(x(4, 1, 1), True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_jagged_tensors_behind_a_cut_are_padded_as_before():
    def pads(net, rows):
        return torch.nested.to_padded_tensor(net.c(net.a(rows).relu()), 0.0)

    model, rows = Net(pads), sequences(3, 5, 2, width=8)
    dm = dg.decouple(model, "a", (rows,), boundary="oracle")

    assert torch.equal(dm(rows), model(rows))
    assert dm(rows).shape == (3, 5, 3)


@pytest.mark.parametrize("capture", ["record", "hooks"])
@pytest.mark.parametrize("lengths", [(2, 7), (4, 4, 4), (1, 6, 2, 3)])
def test_a_list_with_a_tensor_for_each_sample_is_a_batch(capture, lengths):
    def pads(net, samples):
        return net.c(net.a(nn.utils.rnn.pad_sequence(samples, batch_first=True))).mean(1)

    dm = dg.decouple(Net(pads), "a", ([x(3, 0), x(5, 1)],), condition=dg.one_hot(3), capture=capture)

    assert dm.boundaries["a"].spec.shape == (2, 5, 8)
    with dm.conditioned(torch.zeros(len(lengths), dtype=torch.long)):
        dm([x(n, n) for n in lengths]).sum().backward()


def test_a_model_that_runs_whole_has_no_parts():
    dm = hooked(Repeating(), "body")

    assert dm.parts == {} and len(dm.plan.parts) == 2
