"""What Dynamo captured, as a `CapturedGraph`: under the model's own paths, its tensors told from its inputs.

Dynamo      l_self_modules_fc_parameters_weight_, l_x_ ─► _set_grad_enabled ─► linear in "L['self'].fc" ─► ...
ours        get_attr fc_weight, x ─────────────────────────────────────────► linear in "fc", under its mode ─► ...
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..graph.captured_graph import CapturedGraph
from ..graph.mark import cut, traced_mark
from ..graph.nodes import AUTOCAST_DEVICES, Mode, checkpointed, numbered
from ..graph.pytrees import take_apart
from .annotate import Annotator
from .graph_rewriter import GraphRewriter, Rules

Paths = Callable[[str, str], str]  # from what Dynamo calls a module, its id and a Python expression, to its path
_WHOLE_REGIONS = re.compile(r"inference_mode$|_saved_tensors_hooks_|_enter_autocast|_exit_autocast")


def held(graph: fx.Graph, examples: Sequence[Any]) -> list[int]:
    """The positions of the placeholders that are tensors of modules: their parameters and buffers."""
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    return [
        i
        for i, (node, example) in enumerate(zip(inputs, examples, strict=True))
        if isinstance(example, nn.Parameter) or "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})
    ]


def stated_modules(graph: fx.Graph) -> dict[str, str]:
    """The modules that a graph of Dynamo's speaks of: from the id of each to the Python expression that reaches it."""
    stacks = (node.meta.get("nn_module_stack") or {} for node in graph.nodes)
    return {numbered(key)[0]: expression for stack in stacks for key, (expression, _) in stack.items()}


def spelled_path(expression: str) -> str:
    """The path that a Python expression of Dynamo's spells. "L['self']._modules['h'].2" is "h.2"."""
    _, _, rest = expression.partition("]")
    names = re.findall(r"\['?([^'\]]+)'?\]|\.?([^.\[\]]+)", rest.replace(".__dict__['_modules']", ""))
    return ".".join(name for name in (a or b for a, b in names) if name not in ("_modules", "_orig_mod"))


def to_captured_graph(module: fx.GraphModule, names: Mapping[int, str], paths: Paths) -> CapturedGraph:
    """The graph of Dynamo's as a captured graph.

    Args:
        names: the name of each placeholder, by position, that is a tensor of the model.
        paths: tells the path of a module.

    Guarantees:
        `module` is unchanged.
        The model's tensors are `get_attr` nodes; `meta["position"]` of these and of the inputs is their place among the
        arguments.
        Regions without gradient and of autocast are gone; each call in them runs under its own mode. What a transform
        of torch.func runs is one call.
        Checkpointed regions compute again what they computed.
        Nodes that make tensors have the same names whether sizes are numbers or symbols.

    Raises:
        CaptureError: the graph has a region that a part could not keep whole.
    """
    rewriter = _DynamoRewriter(module, names, paths)
    rewriter.write(module.graph.nodes)
    if rewriter.outside or rewriter.mode != rewriter.entry:
        raise CaptureError(["a region begins in it and does not end"])
    return CapturedGraph(rewriter.graph, "dynamo", take_apart(())[1])


def annotate_without_data(captured: CapturedGraph, module: fx.GraphModule, args: Sequence[Any]) -> None:
    """Write into `node.meta` what `annotate` does, from a run on tensors that have sizes but no data.

    It costs no memory, draws no random numbers and changes nothing. A part that takes over a value with a gradient from
    another graph counts as one that trains: there are parameters behind it.

    Raises:
        CaptureError: a call of the graph cannot do without data.
    """
    inputs: dict[fx.Node, Any] = {}
    weights: dict[str, Any] = {}
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            for node in (n for n in captured.graph.nodes if "position" in n.meta):
                value = args[node.meta["position"]]
                if isinstance(value, torch.Tensor):
                    value = mode.from_tensor(value, static_shapes=True)
                if node.op == "placeholder":
                    inputs[node] = value
                else:
                    weights[str(node.target)] = value
            Annotator(replace(captured, constants=weights), module, data=False).run(*inputs.values())
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CaptureError([f"a run on tensors without data fails: {type(error).__name__}: {reason}"]) from error
    for node in inputs:
        for user in node.users if node.meta.get("gradient") else ():
            if user.meta.get("gradient"):
                user.meta["parameters"] = (*user.meta["parameters"], (node.name, 0, True))


class _DynamoRewriter(GraphRewriter):
    """Dynamo's graph with the names and paths of one instance of the model."""

    def __init__(self, module: fx.GraphModule, names: Mapping[int, str], paths: Paths):
        super().__init__(module)
        self.names, self.paths = names, paths
        self.outside: list[Mode] = []  # the modes around the regions of autocast that the writing is in
        self.inputs = 0  # written so far

    def locate(self, module: str, path: str, kind: type) -> tuple[str, type] | None:
        """By the id of the module; its path is a Python expression."""
        located = self.paths(module, path)
        return (located, kind) if located else None

    def name_of(self, node: fx.Node) -> str | None:
        """What computes with sizes has names of its own, so that it takes none from what computes with tensors."""
        leaves = pytree.tree_leaves(node.meta.get("example_value"))
        if node.op in ("get_attr", "output") or not leaves or any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return None
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "value")
        return f"size_{name.strip('_')}" if node.target is not operator.getitem else "size"

    def refusal(self, node: fx.Node) -> str | None:
        """It begins or ends a region that a part could not keep whole."""
        whole = _WHOLE_REGIONS.search(getattr(node.target, "__name__", ""))
        return f"'{node.name}' begins or ends a region that must stay whole" if whole else None

    def _input(self, node: fx.Node) -> None:
        position, self.inputs = self.inputs, self.inputs + 1
        if position in self.names:
            name = re.sub(r"\W", "_", self.names[position])
            new = self.graph.create_node("get_attr", name, name=name)
            new.target = new.name  # unique
        else:
            argument = re.fullmatch(r"[lg]_(.+?)_?", node.name)
            new = self.graph.placeholder(argument[1] if argument else node.name)
        new.meta["position"] = position
        self.made[node] = new

    def _mark(self, node: fx.Node) -> None:
        value, name = self.mapped(node.args)
        self.stands_for(node, self.graph.call_function(cut, (value,), {"name": name}))

    def _set_grad(self, node: fx.Node) -> None:
        self.mode = replace(self.mode, grad=bool(node.args[0]))

    def _enter(self, node: fx.Node) -> None:
        if node.args[0] in AUTOCAST_DEVICES:
            self.outside.append(self.mode)
            self.mode = self.autocast(*node.args)  # type: ignore[arg-type]  # literals
        else:
            self.copy(node)  # which refuses it

    def _exit(self, node: fx.Node) -> None:
        if self.outside:
            self.mode = replace(self.outside.pop(), grad=self.mode.grad)
        else:
            self.copy(node)  # which refuses it

    RULES: ClassVar[Rules] = {
        "placeholder": _input,
        traced_mark: _mark,
        torch.ops.higher_order.tag_activation_checkpoint: lambda self, node: self.copy(node, checkpointed),
        torch._C._set_grad_enabled: _set_grad,
        _enter_autocast: _enter,
        _exit_autocast: _exit,
    }
