"""From a model, cuts and choices to a decoupled model: the climb along the rungs, plans, refusals."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from kit.models import CLASSES, CONDITION, ZOO, Chain, Moody, Skipping, X, cut_up, decoupled_chain, labels, layers
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture import ladder
from dnigraph.passes.graph.pytrees import HOLE, Tree, flatten

captured_module = importlib.import_module("dnigraph.decoupled.on_graphs")


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

    other = dg.decouple(Chain(), dg.Plan.load(tmp_path / "plan.json"), (x,), condition=CONDITION, boundary="dni")

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
    assert [c.boundary for c in dm.plan.crossings] == ["dni (guarded)", "local-loss"]


def test_heads_without_a_label_are_warned_of():
    with pytest.warns(dg.UnconditionedWarning, match="cannot see the label"):
        decoupled_chain(condition=None)


def test_decoupling_twice_and_other_things_that_are_no_model_are_refused():
    dm, x = decoupled_chain()

    with pytest.raises(dg.DniGraphError, match="decoupled already"):
        dg.decouple(dm, "bn", (x,))
    with pytest.raises(dg.DniGraphError, match="not a function"):
        dg.decouple(lambda x: x, "bn", (x,))


def test_a_graph_that_fails_where_the_model_runs_gives_way_to_the_next_rung(monkeypatch):
    def refuse(*_):
        raise ValueError("no such thing")

    monkeypatch.setattr(captured_module, "specialize", refuse)

    dm = dg.decouple(layers(lambda m, x: m.b(m.a(x)), "a", "b"), "a", (torch.ones(2, 4),), boundary="oracle")

    assert dm.plan.capture == "hooks"
    assert any("ValueError: no such thing" in note for note in dm.plan.notes)


# ---- the climb


def test_a_model_that_no_graph_can_stand_for_is_cut_between_its_modules():
    dm = dg.decouple(Moody(), "b", (X,), condition=dg.one_hot(CLASSES))

    assert dm.plan.capture == "hooks"
    assert list(dm.boundaries) == ["b"]
    assert dg.check(dm, X).right
    refused, cost = dm.plan.notes
    assert refused.startswith("record: two recordings")
    assert "is no function of the inputs" in refused
    assert refused.count("\n") == 0
    assert cost.startswith("on hooks: the model runs whole, so it is trained drop-in")


def test_the_dry_run_finds_the_same_rung():
    plan = dg.plan(Moody(), "b", (X,))

    assert plan.capture == "hooks"
    assert plan.notes[0].startswith("record: ")


def test_a_cut_that_only_a_graph_has_says_why_there_is_none():
    with pytest.raises(dg.CutError, match=r"only known by its modules, because record: two recordings") as caught:
        dg.decouple(Moody(), "relu_1", (X,))

    assert "no such module, mark or node" in str(caught.value)


def test_what_only_one_call_would_settle_ends_the_climb():
    with pytest.raises(dg.CaptureError, match="has no size yet: call the model once before") as caught:
        dg.decouple(nn.LazyLinear(3), [], (X,))

    assert len(caught.value.reasons) == 1


def test_a_rung_whose_graph_is_not_the_model_is_not_used(monkeypatch):
    def wrong(model, args, kwargs):
        return replace(right(model, args, kwargs), outputs=Tree(flatten([0])[1], (HOLE,)))

    right = ladder.RUNGS["record"].capture
    monkeypatch.setitem(ladder.RUNGS, "record", ladder.Rung("record", wrong))

    dm = dg.decouple(Skipping(), "b", (X,), condition=dg.one_hot(CLASSES))

    assert dm.plan.capture == "export"
    assert dm.plan.notes[0].startswith("record: the graph is not the same function: outputs in train mode")
    assert dg.check(dm, X).right


def test_a_forced_rung_that_fails_says_so(monkeypatch):
    def wrong(model, args, kwargs):
        return replace(right(model, args, kwargs), outputs=Tree(flatten([0])[1], (HOLE,)))

    right = ladder.RUNGS["record"].capture
    monkeypatch.setitem(ladder.RUNGS, "record", ladder.Rung("record", wrong))

    with pytest.raises(dg.CheckError, match="NOT the same function"):
        dg.decouple(Skipping(), "b", (X,), condition=dg.one_hot(CLASSES), capture="record")


def test_modules_that_run_inside_a_transform_of_torch_func_are_left_alone():
    class Transformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

        def forward(self, x):
            h = self.a(x)
            return self.c(h + torch.func.grad(lambda y: self.b(y.tanh()).square().sum())(h))

    dm = dg.decouple(Transformed(), 2, (X,), boundary="oracle")

    assert dm.plan.capture == "hooks"
    assert dg.check(dm, X).right


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_left_to_the_last_rung():
    class Nesting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

        def forward(self, x):
            ragged = torch.nested.as_nested_tensor([x[:2], x[2:]])
            return self.c(torch.nested.to_padded_tensor(self.b(self.a(ragged).relu()), 0.0))

    dm = dg.decouple(Nesting(), dg.before("c"), (X,), boundary="oracle")

    assert dm.plan.capture == "hooks"
    assert any("nested" in note for note in dm.plan.notes)


def test_state_that_fails_on_other_inputs_is_state_kept_between_calls():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c, self.kept = nn.Linear(4, 8), nn.Linear(8, CLASSES), {}

        def forward(self, x):
            h = self.a(x)
            self.kept["h"] = h.detach() + self.kept.get("h", 0)
            return self.c(h - self.kept["h"])

    dm = dg.decouple(Remembering(), "a", (X,), boundary="oracle")

    assert dm.plan.capture == "hooks"
    assert any("state between calls" in note for note in dm.plan.notes)


def test_where_an_export_hides_a_module_the_cut_is_made_on_hooks():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):  # both calls of b share its weights in half precision
                h = self.b(self.b(self.a(x)).relu())
            return self.c(h.float())

    torch.manual_seed(0)
    dm = dg.decouple(Half(), "b", (X,), boundary="oracle")

    assert dm.plan.capture == "hooks"
    assert any("is a module that did not run" in note for note in dm.plan.notes)


def test_a_cut_that_fits_no_rung_is_refused_as_the_first_of_them_puts_it():
    with pytest.raises(dg.CutError, match="nowhere"):
        dg.decouple(Moody(), "nowhere", (X,))


@pytest.mark.parametrize("which", ["a layer", "a copy that shares one weight", "one for all"])
def test_a_head_that_holds_weights_of_the_model_is_refused_by_their_names(which):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    shared = nn.Linear(4, 4)
    shared.weight = model[2].weight
    heads = {"a layer": model[2], "a copy that shares one weight": shared, "one for all": nn.Sequential(model[2])}

    with pytest.raises(dg.DniGraphError, match=r"'0' holds 2\.weight.*'1' holds 2\.weight.*copy\.deepcopy"):
        dg.decouple(model, ["0", "1"], (X,), head=lambda spec: heads[which])


def partly_frozen(*frozen):
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    for i in frozen:
        model[i].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("capture", "cuts"),
    [
        ("record", ["0", "2"]),
        ("record", ["2", dg.before("1")]),
        ("record", ["re:0", dg.after("2")]),
        ("hooks", ["0", "2"]),
        ("hooks", [dg.after("0"), "2"]),
    ],
)
def test_a_cut_above_frozen_layers_alone_is_left_out_and_noted(capture, cuts):
    dm = dg.decouple(partly_frozen(0), cuts, (X,), boundary="oracle", capture=capture)

    assert len(dm.boundaries) == 1
    assert any("nothing below it learns" in note and note.endswith("left out") for note in dm.plan.notes)


def test_the_boundary_above_frozen_layers_comes_when_they_learn_again():
    model = partly_frozen(0)
    dm = dg.decouple(model, ["0", "2"], (X,), condition=dg.one_hot(4))
    model.requires_grad_(True)

    with dm.conditioned(torch.zeros(len(X), dtype=torch.long)), pytest.warns(UserWarning, match="boundary on '0'"):
        dm(X)

    assert set(dm.boundaries) == {"0", "2"}


@pytest.mark.parametrize(
    ("capture", "cuts"), [("record", "0"), ("record", ["0", dg.before("2")]), ("hooks", "0"), ("hooks", ["0", "1"])]
)
def test_cuts_that_all_stand_above_frozen_layers_alone_are_refused_with_the_reason(capture, cuts):
    with pytest.raises(dg.CutError, match="nothing below it learns") as told:
        dg.decouple(partly_frozen(0, 1), cuts, (X,), capture=capture)

    assert len(told.value.misfits) == (1 if cuts == "0" else 2)


def test_beside_a_cut_above_frozen_layers_a_name_that_does_not_exist_is_an_error():
    with pytest.raises(dg.CutError, match="no such module"):
        dg.decouple(partly_frozen(0), ["0", "2", "7"], (X,))


def test_sharded_parameters_are_refused_with_the_way_out():
    class DTensor(torch.Tensor):
        """As torch names the kind whose pieces lie on several processes."""

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for layer in model:
        for name in ("weight", "bias"):
            setattr(layer, name, nn.Parameter(getattr(layer, name).detach().as_subclass(DTensor)))

    words = (
        r"4 parameters are sharded over processes \(0\.weight, 0\.bias, 1\.weight\): decouple first, then fully_shard"
    )
    with pytest.raises(dg.DniGraphError, match=words):
        dg.decouple(model, "0", (torch.ones(2, 2),))
