"""The second rung takes what the recorder cannot, and is believed only where the model bears it out."""

import pytest
import torch
from kit.replay import Doing, judge
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.capture.export_proof import Trial
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.cuts.specs import resolve
from dnigraph.passes.errors import CaptureError, GuardMiss
from dnigraph.passes.graph.guards import Trust, trust
from dnigraph.passes.graph.pytrees import flatten

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def maps_over_rows(model, x):
    return model.outer(torch.vmap(lambda row: row * 2)(model.inner(x)))


def works_without_gradients(model, x):
    with torch.no_grad():
        scale = model.inner(x).mean()
    return model.outer(x) * scale


def works_in_bfloat16(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.inner(x) @ torch.eye(4)
    return model.outer(y.float())


def counts_in_a_buffer(model, x):
    model.seen += 1
    return {"y": torch.dropout(model.inner(x), 0.5, True) * model.seen, "none": None, "rows": x.shape[0]}


def adds_up_its_arguments(model, x, *, scale=1, bias=None):
    return model.inner(x) * scale + bias


def replaces_a_buffer(model, x):
    model.seen = model.seen + 1
    return model.inner(x)


def counts_and_maps(model, x):
    model.calls = getattr(model, "calls", 0) + 1
    return maps_over_rows(model, x) * (2 if model.calls > 100 else 1)


@pytest.mark.parametrize(
    "function",
    [maps_over_rows, works_without_gradients, works_in_bfloat16, counts_in_a_buffer],
    ids=lambda f: f.__name__,
)
def test_an_export_is_the_model_at_other_batch_sizes_too(function):
    verdict = judge(Doing(function), X, how="export")

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
    assert verdict.captured.rung == "export"


def test_an_export_refers_to_the_models_own_tensors_and_modules():
    model = Doing(maps_over_rows)
    captured = capture(model, (X,), {}, "export")

    read = {n.target for n in captured.graph.nodes if n.op == "get_attr"}
    assert {"inner.weight", "inner.bias", "outer.weight", "outer.bias"} <= read
    assert [n.target for n in captured.graph.nodes if n.op == "placeholder"] == ["x"]
    annotate(captured, model, [X])
    (edge,) = resolve(captured.graph, "inner").edges
    assert edge[0].name == "linear" and trust(captured.graph) is Trust.SAME_SIZES


def test_each_call_of_a_module_has_a_key_of_its_own():
    captured = capture(Doing(lambda m, x: m.inner(m.inner(x))), (X,), {}, "export")

    keys = {key for node in captured.graph.nodes for key in node.meta.get("nn_module_stack", {})}
    assert keys == {"inner", "inner@2"}


def test_arguments_by_name_and_constants_find_their_places():
    verdict = judge(Doing(adds_up_its_arguments), X, how="export", bias=torch.ones(4), scale=2)

    assert verdict.same == "right", verdict.why


def test_a_size_that_the_export_took_for_granted_is_a_miss():
    def branches(model, x):
        return model.inner(x) if x.shape[0] % 2 else model.outer(x)

    verdict = judge(Doing(branches), X, how="export")

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why


@pytest.mark.parametrize(
    "function, why",
    [
        (counts_and_maps, "the model sets 'calls' in every call"),
        (lambda model, x: model.inner(x) if x.sum() > 0 else model.outer(x), "torch.export: "),
    ],
    ids=["counter", "branch"],
)
def test_an_export_that_is_not_the_model_is_refused(function, why):
    verdict = judge(Doing(function), X, how="export")

    assert verdict.same == "refused" and why in verdict.why


def test_what_the_recorder_cannot_take_the_export_takes():
    assert judge(Doing(maps_over_rows), X, how="auto").captured.rung == "export"
    assert judge(Doing(works_in_bfloat16), X, how="auto").captured.rung == "record"


def test_a_model_that_decides_by_other_things_ends_the_climb():
    def counts(model, x):
        model.calls = getattr(model, "calls", 0) + 1
        return model.inner(x)

    with pytest.raises(CaptureError) as caught:
        capture(Doing(counts), (X,), {})

    assert [reason.partition(":")[0] for reason in caught.value.reasons] == ["record"]


def test_both_rungs_say_why_they_refuse():
    def shares_memory(model, x):
        y = torch.zeros(4)
        y.numpy()[0] = float(x.sum())
        return model.inner(x) + y

    with pytest.raises(CaptureError) as caught:
        capture(Doing(shares_memory), (X,), {})

    assert [reason.partition(":")[0] for reason in caught.value.reasons] == ["record", "export"]


def test_layers_of_torch_are_exported():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.GELU())

    verdict = judge(model, X, how="export")

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


@pytest.mark.parametrize("capture", ["record", "export", "hooks", "symbolic"])
def test_a_mark_is_seen_on_every_rung_and_names_its_crossing(capture):
    class Marked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(dg.cut(self.a(x).relu(), name="middle"))

    plan = dg.plan(Marked(), None, (torch.randn(3, 4),), capture=capture)

    assert [c.name for c in plan.crossings if c.gradient] == ["middle"]


WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def multiplies_by_what_is_nobodys(model, x):
    return model.inner(x) * WEIGHTS


def multiplies_by_what_it_makes_without_gradients(model, x):
    with torch.no_grad():
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0]) * x
    return model.inner(x) + scale


def uses_an_alias_of_its_own(model, x):
    return torch.ops.aten.alias.default(model.inner(x)).relu()


def writes_into_a_buffer(model, x):
    model.seen.copy_(x.mean())
    return model.inner(x) * model.seen


def returns_numbers(model, x):
    rows = x.shape[0]
    return {"y": model.inner(x), "rows": rows, "half": rows * 0.5, "many": rows > 1, "two": 2, "width": x.shape[1]}


def marks_what_holds_no_tensors_too(model, x):
    y, kind, number = dg.cut((model.inner(x), x.dtype, 2), "middle")
    return model.outer(y) * number if kind is torch.float32 else y


@pytest.mark.parametrize(
    "function",
    [
        multiplies_by_what_is_nobodys,
        multiplies_by_what_it_makes_without_gradients,
        uses_an_alias_of_its_own,
        writes_into_a_buffer,
        returns_numbers,
        marks_what_holds_no_tensors_too,
    ],
    ids=lambda f: f.__name__,
)
def test_an_export_is_the_model_whatever_it_reads_writes_and_returns(function):
    verdict = judge(Doing(function), X, how="export")

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_constants_of_an_export_have_names_that_no_tensor_of_the_model_has():
    model = Doing(lambda model, x: model.inner(x) * WEIGHTS + torch.ones(4).lerp(BIAS, 0.5))
    model._constant_0 = nn.Parameter(torch.ones(4))

    captured = capture(model, (X,), {}, "export")

    assert {name: tensor.tolist() for name, tensor in captured.constants.items()} == {
        "_constant_0_": WEIGHTS.tolist(),
        "_constant_1": BIAS.tolist(),
    }


BIAS = torch.tensor([5.0, 6.0, 7.0, 8.0])


def test_inputs_of_another_size_than_an_export_holds_for_are_a_miss_that_says_which():
    captured = capture(Doing(lambda model, x, y: model.inner(x) + y), (X, X), {}, "export")
    graph = captured.module(Doing(maps_over_rows))

    with pytest.raises(GuardMiss, match=r"finds inputs of \(3, 5\) instead of \(s\d+, 4\)"):
        graph(X, torch.ones(3, 5))


def test_a_model_that_takes_no_other_number_of_rows_is_compared_on_its_own():
    verdict = judge(Doing(lambda model, x: model.inner(x).view(3, 4)), X, how="export")

    assert (verdict.same, verdict.more) == ("right", "none"), verdict.why


def test_results_that_cannot_send_gradients_back_together_are_refused_in_torchs_words():
    def spoils(model, x):
        y = model.inner(x)
        z = y**2
        y.add_(1)
        return z

    with pytest.raises(CaptureError) as caught:
        capture(Doing(spoils), (X,), {}, "export")

    (reason,) = caught.value.reasons
    assert reason.startswith(
        "export: no gradient can be sent back from all results, to compare it: one of the variables"
    )
    assert reason.endswith("modified by an inplace operation")


def test_a_trial_knows_which_inputs_the_model_itself_takes():
    trial = Trial(Doing(lambda model, x: model.inner(x).view(3, 4)), flatten(((X,), {}))[1])

    assert trial.takes([X]) is True and trial.takes([torch.ones(4, 4)]) is False
