"""What every capture rung promises of its graphs, held against all. A new rung of the ladder joins by itself."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from kit.contract import misfits
from kit.models import ZOO
from kit.replay import assert_untouched, fingerprint
from torch import nn
from torch.utils import _pytree as pytree

import dnigraph as dg
from dnigraph.dynamo import compiled_graph
from dnigraph.passes.capture import ladder
from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.errors import CaptureError
from dnigraph.passes.graph.nodes import guard
from dnigraph.passes.graph.pytrees import HOLE, Tree, flatten


def on_the_ladder(name, model, args, monkeypatch):
    rung = ladder.RUNGS[name]
    captured = rung.capture(model, args, {})
    if rung.runs_whole:
        return returning_tensors(captured)
    inputs = [v for v in pytree.tree_leaves(args) if isinstance(v, torch.Tensor)]
    if len(captured.graph.find_nodes(op="placeholder")) == len(inputs):  # symbolic has one for what is not given, too
        annotate(captured, model, inputs)
    return captured


def seen_by_dynamo(model, args, monkeypatch):
    graphs = []

    def collected(captured, module, inputs):
        annotate_without_data(captured, module, inputs)
        owned = {
            n.target: inputs[n.meta["position"]] if "position" in n.meta else getattr(module, n.target)
            for n in captured.graph.find_nodes(op="get_attr")
        }
        graphs.append(returning_tensors(replace(captured, constants=owned)))

    annotate_without_data = compiled_graph.annotate_without_data
    monkeypatch.setattr(compiled_graph, "annotate_without_data", collected)
    torch.compile(model, backend=dg.Backend(["*"], boundary="oracle"))(*args)
    if not graphs:
        raise CaptureError(["Dynamo runs it in Python"])
    return graphs[0]


def returning_tensors(captured):
    """Where nothing is ever built of the results: as if the model returned them as they are."""
    count = len(captured.graph.output_node().args[0])
    return replace(captured, outputs=Tree(flatten([0] * count)[1], (HOLE,) * count))


RUNGS = {**{name: partial(on_the_ladder, name) for name in ladder.RUNGS}, "dynamo": seen_by_dynamo}
REFUSED = {("export", "regions_and_a_function_of_its_own"), ("dynamo", "several_tensors_over_a_cut")}
WHOLE = {"symbolic", "dynamo"}  # rungs whose graphs take more or less than one input for each tensor


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rung", RUNGS)
def test_what_a_rung_captures_keeps_the_contract_and_leaves_the_model_as_it_was(rung, name, monkeypatch):
    torch.manual_seed(0)
    model, args, _ = ZOO[name]()
    tensors = sum(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(args))
    before = fingerprint(model)

    if (rung, name) in REFUSED:
        with pytest.raises(CaptureError):
            RUNGS[rung](model, args, monkeypatch)
        return
    captured = RUNGS[rung](model, args, monkeypatch)

    assert misfits(captured, model, None if rung in WHOLE else tensors) == []
    if rung != "dynamo":  # which runs the model
        assert_untouched(before, model)


# ---- each breach is told


def chain():
    torch.manual_seed(0)
    model, args, _ = ZOO["chain"]()
    return ladder.RUNGS["record"].capture(model, args, {}), model


def leaked(value):
    return value


leaked.__module__ = "dnigraph.somewhere"


def calls(target, *args):
    def broken(graph):
        node = next(n for n in graph.nodes if n.op == "call_module")
        with graph.inserting_after(node):
            graph.call_function(target, (node, *args))

    return broken


def first_layer_is(**changes):
    def broken(graph):
        node = next(n for n in graph.nodes if n.op == "call_module")
        for field, value in changes.items():
            setattr(node, field, value)

    return broken


def no_tuple(graph):
    graph.output_node().args = (graph.output_node().args[0][0],)


BREACHES = {
    "2 placeholders for 1 tensors": lambda graph: graph.placeholder("more"),
    "no output of a flat tuple": no_tuple,
    "returns 0 values for 1 holes": lambda graph: setattr(graph.output_node(), "args", ((),)),
    "meta has unknown keys: colour": first_layer_is(meta={"colour": "red"}),
    "the model has no module 'fc9'": first_layer_is(target="fc9"),
    "calls dnigraph.somewhere.leaked": calls(leaked),
    "a guard has a value": calls(guard, 3),
    "no name of a call of module 'fc1'": first_layer_is(meta={"nn_module_stack": {"fc1@1": ("fc1", nn.Linear)}}),
    "the model has no LSTM 'fc1'": first_layer_is(meta={"nn_module_stack": {"fc1": ("fc1", nn.LSTM)}}),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_contract_is_told(breach):
    captured, model = chain()
    assert misfits(captured, model, 1) == []

    BREACHES[breach](captured.graph)

    assert any(breach in misfit for misfit in misfits(captured, model, 1))
