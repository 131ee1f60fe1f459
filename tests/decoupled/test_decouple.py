"""What the decoupled model keeps of the model, and what stands on the cuts."""

import copy
import importlib
import inspect

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, ZOO, Chain, Several, cut_up, labels, loss_of
from torch import nn

import dnigraph as dg
from dnigraph.boundaries.dni import GAIN

CONDITION = dg.one_hot(CLASSES)
captured_module = importlib.import_module("dnigraph.decoupled.on_graphs")


class Says(nn.Module):
    """A head that always says the same."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, h):
        return torch.full_like(h, self.value)


def handed_to(seen):
    """A hook that keeps what the boundary hands down."""

    def hook(module, given):
        given[0].register_hook(lambda gradient: seen.append(gradient.clone()))

    return hook


def decoupled_chain(**options):
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    return dg.decouple(Chain(), "bn", (x,), **{"condition": CONDITION, **options}), x


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_stays_the_same_function(name):
    dm, args = cut_up(name, check=False)

    report = dg.check(dm, *args)

    assert report.right
    assert {f.what for f in report.findings} >= {
        "outputs",
        "buffers",
        "random numbers",
        "oracle gradients",
        "separation",
    }


@pytest.mark.parametrize("name", ZOO)
def test_other_batch_sizes_are_right_too(name):
    dm, args = cut_up(name, check=False)

    for more in (1, 3):
        bigger = tuple(torch.cat([a, a[:more]]) for a in args)

        assert dg.check(dm, *bigger).right


@pytest.mark.parametrize("name", ZOO)
def test_the_model_itself_stays_as_it_was(name):
    torch.manual_seed(0)
    model, args, cuts = ZOO[name]()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flags = [m.training for m in model.modules()]

    dg.decouple(model, cuts, args, condition=CONDITION)

    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) and list(before) == list(after)
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("name", ZOO)
def test_heads_start_at_exactly_zero_and_move(name):
    dm, args = cut_up(name, check=False)
    seen = []
    for boundary in dm.boundaries.values():
        boundary.register_forward_pre_hook(handed_to(seen))
    y = labels(len(args[0]))
    before = [p.clone() for p in dm.head_parameters()]

    optimizer = torch.optim.Adam(dm.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        with dm.conditioned(y):
            loss = loss_of(dm(*args), y)
        loss.backward()
        optimizer.step()

    assert any(not torch.equal(p, q) for p, q in zip(before, dm.head_parameters(), strict=True))
    assert any(g.ne(0).any() for g in seen)


def test_the_first_synthetic_gradient_is_exactly_zero():
    dm, x = decoupled_chain()

    with dm.conditioned(labels(4)):
        F.cross_entropy(dm(x), labels(4)).backward()

    assert all(p.grad.eq(0).all() for p in dm.part_0.parameters())
    assert any(p.grad.ne(0).any() for p in dm.part_1.parameters())


def test_a_wrong_head_is_felt_below_the_cut_and_only_there():
    gradients = {}
    for value in (0.0, 1.0):
        dm, x = decoupled_chain(head=lambda spec, value=value: Says(value))
        with dm.conditioned(labels(4)):
            F.cross_entropy(dm(x), labels(4)).backward()
        gradients[value] = {name: p.grad for name, p in dm.recouple().named_parameters()}

    for name, gradient in gradients[1.0].items():
        if name.startswith(("fc1", "bn")):
            assert gradients[0.0][name].eq(0).all()
        else:
            assert torch.equal(gradient, gradients[0.0][name]) and gradient.ne(0).any()
    assert torch.allclose(gradients[1.0]["bn.bias"], torch.tensor(float(GAIN)))  # from 4 samples, a quarter of it each


def test_the_forward_pass_needs_no_label_and_the_backward_pass_says_that_it_does():
    dm, x = decoupled_chain()

    loss = F.cross_entropy(dm(x), labels(4))

    with pytest.raises(dg.ConditionError, match="boundary 'bn' looks at the label"):
        loss.backward()


def test_parameters_are_the_same_objects_and_recouple_gives_the_very_model_back():
    model, x = Chain(), torch.randn(4, 6)

    dm = dg.decouple(model, "bn", (x,), condition=CONDITION)

    assert dm.recouple() is model
    assert dm.part_0.fc1.weight is model.fc1.weight
    assert {id(p) for p in model.parameters()} <= {id(p) for p in dm.parameters()}
    assert dm.fc3 is model.fc3


def test_no_cuts_is_the_plain_model_exactly():
    model, x = Chain(), torch.randn(4, 6)
    dm = dg.decouple(model, [], (x,))

    dm(x).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()

    assert list(dm.state_dict()) == list(model.state_dict())
    assert len(dm.parts) == 1 and not dm.boundaries
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, model.parameters(), strict=True))


def test_the_state_dict_keeps_the_models_keys_and_puts_heads_under_a_prefix():
    dm, _ = decoupled_chain()

    own, plain = dm.state_dict(), dm.recouple().state_dict()

    assert list(own)[: len(plain)] == list(plain)
    assert all(key.startswith("dni.bn.") for key in list(own)[len(plain) :])


def test_a_plain_checkpoint_loads_and_comes_back():
    dm, x = decoupled_chain()
    other = Chain()

    result = dm.load_state_dict(other.state_dict())

    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(dm.eval()(x), other.eval()(x))
    again = Chain()
    again.load_state_dict({k: v for k, v in dm.state_dict().items() if not k.startswith("dni.")})


def test_a_full_checkpoint_loads_heads_too_and_a_wrong_key_is_named():
    dm, _ = decoupled_chain()
    other, _ = decoupled_chain()
    with torch.no_grad():
        for p in dm.head_parameters():
            p.add_(1.0)

    other.load_state_dict(dm.state_dict())

    assert all(torch.equal(p, q) for p, q in zip(dm.head_parameters(), other.head_parameters(), strict=True))
    with pytest.raises(RuntimeError, match="nowhere"):
        other.load_state_dict({**dm.state_dict(), "nowhere": torch.ones(1)})


def test_the_signature_is_the_models_and_calls_by_keyword_are_the_same_call():
    model, x = Several(), torch.randn(4, 4)
    dm = dg.decouple(model, "middle", (x,), condition=CONDITION)

    assert list(inspect.signature(dm.forward).parameters) == ["x", "twice"]
    result = dm(x=x, twice=False)
    assert type(result).__name__ == "Result" and result.count == 4 and result.nothing is None


def test_hooks_of_the_user_keep_firing():
    model, x, seen = Chain(), torch.randn(4, 6), []
    model.fc2.register_forward_hook(lambda m, args, out: seen.append("fc2"))
    model.register_forward_hook(lambda m, args, out: seen.append("root"))
    dm = dg.decouple(model, "bn", (x,), condition=CONDITION)
    seen.clear()

    dm(x)

    assert seen == ["fc2", "root"]


def test_train_and_eval_switch_the_graph_and_dropout():
    dm, args = cut_up("resnet")
    dm.eval()

    with torch.no_grad():
        assert torch.equal(dm(*args), dm(*args))
    assert not dm.recouple().training and not dm.layer1.training
    dm.train()
    assert not torch.equal(dm(*args), dm(*args))


def test_a_move_to_another_type_takes_parts_and_buffers_along():
    dm, args = cut_up("resnet", check=False)

    dm.double()

    assert dg.check(dm, *(a.double() for a in args)).right


def test_a_copy_learns_on_its_own():
    dm, x = decoupled_chain()
    other = copy.deepcopy(dm)

    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)

    assert torch.equal(dm.eval()(x), dm.recouple()(x))
    assert not torch.equal(dm(x), other.eval()(x))
    assert other.part_0.fc1.weight is other.recouple().fc1.weight


def test_a_model_in_eval_mode_comes_back_in_eval_mode():
    model, x = Chain().eval(), torch.randn(4, 6)

    dm = dg.decouple(model, "bn", (x,), condition=CONDITION)

    assert not dm.training and not any(m.training for m in model.modules())
    assert len(dm.train().parts) == 2


def test_without_an_example_the_symbolic_trace_serves():
    model, x = Chain(), torch.randn(4, 6)
    with pytest.warns(UserWarning, match="model once before"):
        dm = dg.decouple(model, "bn", capture="symbolic", condition=CONDITION)

    with dm.conditioned(labels(4)):
        dm(x)

    assert dm.plan.capture == "symbolic" and len(dm.parts) == 2
    assert dg.check(dm, x).right


def test_a_saved_plan_cuts_the_same_again(tmp_path):
    dm, x = decoupled_chain()
    dm.plan.save(tmp_path / "plan.json")

    other = dg.decouple(Chain(), dg.Plan.load(tmp_path / "plan.json"), (x,), condition=CONDITION)

    assert other.plan == dm.plan


def test_the_plan_is_known_before_anything_is_built():
    model, x = Chain(), torch.randn(4, 6)

    plan = dg.plan(model, "bn", (x,))

    assert [p.name for p in plan.parts] == ["part_0", "part_1"]
    assert plan.crossings[0].name == "bn" and plan.crossings[0].shape == (4, 8)
    assert "part_1" in str(plan)


def test_a_plan_asks_for_an_example():
    with pytest.raises(dg.CaptureError, match=r"symbolic: it needs one example call: pass example_args=\(x,\)"):
        dg.plan(Chain(), "bn", capture="symbolic")


def test_all_misfits_are_named_at_once():
    with pytest.raises(dg.CutError) as error:
        dg.decouple(Chain(), ["fc9", "fc3"], (torch.randn(4, 6),))

    assert len(error.value.misfits) == 2
    assert "cut 'fc9': the model has no such module, mark or node; nearest: fc" in str(error.value)
    assert "cut 'fc3': matches 'fc3', which ends the model; cut one of its inputs" in str(error.value)


def test_choices_for_crossings_that_there_are_not_are_named():
    with pytest.raises(dg.DniGraphError, match="head=: no crossing is called 'bm'; nearest: bn; there are bn"):
        decoupled_chain(head={"bm": "linear"})


def test_choices_can_differ_from_crossing_to_crossing():
    dm, _ = cut_up("chain", head={"bn": "linear", "*": "low-rank"}, boundary={"fc2": "local-loss", "*": "dni"})

    assert dm.boundaries["bn"].kind == "dni" and dm.boundaries["fc2"].kind == "local-loss"
    assert [c.boundary for c in dm.plan.crossings] == ["dni", "local-loss"]


def test_heads_without_a_label_are_warned_of():
    with pytest.warns(dg.UnconditionedWarning, match="cannot see the label"):
        decoupled_chain(condition=None)


def test_decoupling_twice_and_other_things_that_are_no_model_are_refused():
    dm, x = decoupled_chain()

    with pytest.raises(dg.DniGraphError, match="decoupled already"):
        dg.decouple(dm, "bn", (x,))
    with pytest.raises(dg.DniGraphError, match="not a function"):
        dg.decouple(lambda x: x, "bn", (x,))


def test_a_broken_rewrite_is_found_and_its_part_named():
    dm, x = decoupled_chain(check=False)
    dm.part_1._modules["fc2"] = nn.Linear(8, 8)

    with pytest.raises(dg.CheckError, match=r"first at .*part_1"):
        dg.check(dm, x)


def test_a_leak_past_a_cut_is_found():
    dm, x = decoupled_chain(check=False)
    top = dm.specialization.top
    node = next(n for n in top.graph.nodes if n.name.startswith("dni_"))
    node.replace_all_uses_with(node.args[0])
    top.graph.erase_node(node)
    top.recompile()

    with pytest.raises(dg.CheckError, match="leak past the cuts"):
        dg.check(dm, x)


def test_drop_in_training_works_under_autocast_accumulation_and_with_compiled_parts():
    dm, x = decoupled_chain()
    for part in dm.parts.values():
        part.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(dm.parameters(), 0.1)
    before = [p.clone() for p in dm.parameters()]

    for _ in range(2):
        with dm.conditioned(labels(4)), torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(dm(x).float(), labels(4)) / 2
        loss.backward()
    optimizer.step()

    assert sum(not torch.equal(p, q) for p, q in zip(before, dm.parameters(), strict=True)) >= 4


def test_rows_that_are_no_batch_may_be_as_many_as_they_happen_to_be():
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 3)

        def forward(self, x, count):
            rows = self.below(x.repeat(count, 1, 1, 1))
            return self.above(torch.relu(rows)).mean()

    with pytest.warns(dg.UnconditionedWarning):
        dm = dg.decouple(Regions(), "below", (torch.randn(2, 1, 5, 5), 3), head="conv")

    dm(torch.randn(2, 1, 5, 5), 3).backward()
    dm(torch.randn(2, 1, 5, 5), 7).backward()

    assert dm.boundaries["below"].spec.shape == (6, 6, 5, 5)


@pytest.mark.parametrize("boundary", ["dni", "local-loss"])
def test_a_sequence_of_another_length_meets_the_same_head_also_behind_a_convolution(boundary):
    class Wave(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(2)

    wave = Wave(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, CLASSES, 3))
    dm = dg.decouple(wave, "1", (torch.randn(4, 2, 20),), condition=CONDITION, boundary=boundary)
    before = [p.detach().clone() for p in dm.head_parameters()]
    optimizer = torch.optim.Adam(dm.parameters(), 1e-2)

    for length in (20, 33, 9):
        with dm.conditioned(labels(4)):
            loss = F.cross_entropy(dm(torch.randn(4, 2, length)), labels(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert any(not torch.equal(p, b) for p, b in zip(dm.head_parameters(), before, strict=True))
    assert dm.boundaries["1"].spec.kind == "maps"


class Own(torch.autograd.Function):
    """Adds a gradient of its own, as an auxiliary loss does that is hung onto a value."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 0.1


def layers(forward, *names):
    """A model of linear layers and a function of (model, *inputs)."""
    model = type("Layers", (nn.Module,), {"forward": forward})()
    for name in names:
        setattr(model, name, nn.Linear(4, 4))
    return model


def test_a_gradient_that_a_part_makes_itself_is_no_leak():
    model = layers(lambda m, x: m.c(m.b(Own.apply(m.a(x)))), "a", "b", "c")

    dm = dg.decouple(model, "b", (torch.ones(2, 4),), boundary="oracle")

    assert dm.plan.capture == "record"


def test_what_cannot_be_sent_back_through_in_the_model_is_not_asked_of_its_parts():
    def forward(m, x):
        h = m.b(m.a(x).sigmoid()).sigmoid()
        y = m.c(h * 2)
        return y, h.mul_(0.5)  # sigmoid saved its result: no gradient comes back through it any more

    model = layers(forward, "a", "b", "c")

    dm = dg.decouple(model, "a", (torch.ones(2, 4),), boundary="oracle")

    assert dm.plan.capture == "record"
    assert dg.check(dm, torch.ones(2, 4)).right


@pytest.mark.parametrize("call", ["to", "half", "requires_grad_", "double"])
def test_a_crossing_may_be_called_what_modules_can_do(call):
    given = (torch.float32,) if call == "to" else ()
    model = layers(lambda m, x: m.b(getattr(m.a(x) * 1.5, call)(*given).to(torch.float32)), "a", "b")

    dm = dg.decouple(model, call, (torch.ones(2, 4),), condition=CONDITION)
    with dm.conditioned(torch.zeros(2, dtype=torch.long)):
        dm(torch.ones(2, 4)).sum().backward()

    assert list(dm.boundaries) == [call]
    again = dg.decouple(model, call, (torch.ones(2, 4),), condition=CONDITION)
    assert not any(again.load_state_dict(dm.state_dict()))


def test_a_graph_that_fails_where_the_model_runs_gives_way_to_the_next_rung(monkeypatch):
    def refuse(*_):
        raise ValueError("no such thing")

    monkeypatch.setattr(captured_module, "specialize", refuse)

    dm = dg.decouple(layers(lambda m, x: m.b(m.a(x)), "a", "b"), "a", (torch.ones(2, 4),), boundary="oracle")

    assert dm.plan.capture == "hooks"
    assert any("ValueError: no such thing" in note for note in dm.plan.notes)


def test_sparse_buffers_and_sparse_gradients_are_compared_too():
    model = layers(lambda m, x: m.b(torch.sparse.mm(m.edges, m.a(m.embedding(x)))), "a", "b")
    model.embedding = nn.Embedding(5, 4, sparse=True)
    model.register_buffer("edges", torch.eye(3).to_sparse())

    dm = dg.decouple(model, "a", (torch.tensor([0, 2, 2]),), boundary="oracle")

    assert dm.plan.capture == "record"


def test_numbers_that_stand_for_nothing_do_not_spoil_a_head():
    masked = torch.ones(4, 4, dtype=torch.bool).triu(1)
    model = layers(lambda m, x: m.b(m.a(x).masked_fill(masked, torch.finfo().min).softmax(-1)), "a", "b")
    x = torch.randn(4, 4)
    dm = dg.decouple(model, "masked_fill", (x,), condition=CONDITION)

    for _ in range(2):
        with dm.conditioned(torch.tensor([0, 1, 2, 0])):
            dm(x).square().sum().backward()
        with torch.no_grad():
            [p.sub_(0.1 * p.grad) for p in dm.parameters()]

    assert all(bool(p.isfinite().all()) for p in dm.parameters())
    assert all(bool(b.isfinite().all()) for b in dm.boundaries["masked_fill"].buffers())


@pytest.mark.parametrize("name", ["graph", "code", "meta", "context", "plan"])
@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
def test_what_the_model_calls_its_own_things_is_its_own_matter(name, kind):
    def forward(m, x):
        own = getattr(m, name)
        return m.b(own(m.a(x)) if kind == "module" else m.a(x) * own)

    model = layers(forward, "a", "b")
    if kind == "buffer":
        model.register_buffer(name, torch.full((4,), 2.0))
    else:
        setattr(model, name, nn.Linear(4, 4) if kind == "module" else nn.Parameter(torch.full((4,), 2.0)))
    x = torch.ones(2, 4)

    dm = dg.decouple(model, "a", (x,), boundary="oracle")

    assert dm.plan.capture == "record"
    assert torch.equal(copy.deepcopy(dm)(x), model(x))
    assert set(model.state_dict()) <= set(dm.state_dict())


@pytest.mark.parametrize("capture", ["record", "hooks"])
def test_a_hook_that_looks_at_keywords_finds_them(capture):
    class Scaled(Chain):
        def forward(self, x, scale=None, shift=None):
            return super().forward(x)

    model = Scaled()
    model.register_forward_hook(lambda m, args, kwargs, y: y * kwargs["scale"] + kwargs["shift"], with_kwargs=True)
    x, scale, shift = torch.randn(4, 6), torch.tensor(2.0), torch.tensor(1.0)

    dm = dg.decouple(model, "bn", (x,), {"shift": shift, "scale": scale}, boundary="oracle", capture=capture)

    assert torch.equal(dm(x, scale=scale, shift=shift + 1), model(x, shift=shift + 1, scale=scale))
