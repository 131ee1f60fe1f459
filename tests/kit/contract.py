"""What all passes rely on in a captured graph, and where a graph breaks it.

x ─► get_attr, call_module, call_function, call_method, guard ... ─► output((value, value, ...))
"""

import re

from torch import fx, nn

from dnigraph.passes.graph.captured_graph import lookup
from dnigraph.passes.graph.nodes import OURS, Call, NodeMeta, guard
from dnigraph.passes.graph.pytrees import HOLE


def misfits(captured, model, tensors=None):
    """Where a captured graph breaks the contract; nothing: it keeps it.

    Args:
        tensors: how many tensors are among the inputs; `None`: the rung takes the arguments whole.
    """
    nodes = list(captured.graph.nodes)
    count = sum(node.op == "placeholder" for node in nodes)
    results = nodes[-1].args[0] if nodes and nodes[-1].op == "output" else None
    wrong = []
    if tensors not in (None, count):
        wrong.append(f"it has {count} placeholders for {tensors} tensors among the inputs")
    if not isinstance(results, tuple) or not all(isinstance(value, fx.Node) for value in results):
        wrong.append("its last node is no output of a flat tuple of nodes")
    elif len(results) != (holes := sum(constant is HOLE for constant in captured.outputs.constants)):
        wrong.append(f"it returns {len(results)} values for {holes} holes in the model's result")
    return wrong + [f"{node.name}: {reason}" for node in nodes for reason in _node_misfits(node, captured, model)]


def _node_misfits(node, captured, model):
    if not node.name.isidentifier():
        yield "this is no name for a variable"
    if unknown := node.meta.keys() - NodeMeta.__annotations__.keys():
        yield f"its meta has unknown keys: {', '.join(sorted(unknown))}"
    if node.op in ("get_attr", "call_module"):
        kind = "module" if node.op == "call_module" else "tensor"
        found = _resolved(model, captured.constants, str(node.target))
        if found is None or (kind == "module" and not isinstance(found, nn.Module)):
            yield f"the model has no {kind} '{node.target}', and there is no such constant"
    home = getattr(node.target, "__module__", None) or ""
    ours = node.op == "call_function" and home.startswith("dnigraph.") and not isinstance(node.target, Call)
    if ours and node.target not in OURS:
        yield f"it calls {home}.{node.target.__name__}, which is not in `OURS`"
    if node.target is guard and (len(node.args) != 3 or node.users):
        yield "a guard has a value, what is expected and a place, and nobody reads it"
    for key, (path, kind) in node.meta.get("nn_module_stack", {}).items():
        if not re.fullmatch(re.escape(path) + r"(@([2-9]|[1-9]\d+))?", key):
            yield f"'{key}' is no name of a call of module '{path}': the first is '{path}', the second '{path}@2'"
        if type(_resolved(model, {}, path)) is not kind:
            yield f"the model has no {kind.__name__} '{path}', which is said to call it"


def _resolved(model, constants, path):
    try:
        return lookup(model, constants, path)
    except AttributeError:
        return None
