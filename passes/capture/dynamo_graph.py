"""What Dynamo captured, as a `CapturedGraph`: under the model's own paths, its tensors told from its inputs.

Dynamo      l_self_modules_fc_parameters_weight_, l_x_ ─► _set_grad_enabled ─► linear in "L['self'].fc" ─► ...
ours        get_attr fc_weight, x ─────────────────────────────────────────► linear in "fc", under its mode ─► ...
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..graph.captured_graph import CapturedGraph
from ..graph.mark import cut as marker
from ..graph.mark import traced_mark
from ..graph.nodes import AUTOCAST_DEVICES, Call, Mode, checkpointed
from ..graph.pytrees import take_apart
from .annotate import Annotator
from .torch_func import as_function, stretches

Paths = Callable[[str, str], str]  # from what Dynamo calls a module, its id and a Python expression, to its path
_REGIONS = re.compile(r"inference_mode$|_saved_tensors_hooks_|_enter_autocast|_exit_autocast")


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
    return {key.partition("@")[0]: expression for stack in stacks for key, (expression, _) in stack.items()}


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
    graph = _Rewritten(names, paths)
    for nodes in stretches(module.graph.nodes):
        graph.add(nodes[0]) if len(nodes) == 1 else graph.add_transform(module, nodes)
    if graph.modes != [graph.entry]:
        raise CaptureError(["a region begins in it and does not end"])
    return CapturedGraph(graph.graph, "dynamo", take_apart(())[1])


def annotate_without_data(captured: CapturedGraph, module: fx.GraphModule, args: Sequence[Any]) -> None:
    """Write into `node.meta` what `annotate` does, from a run on tensors that have sizes but no data.

    It costs no memory, draws no random numbers and changes nothing. A part that takes over a value with a gradient from
    another graph counts as one that trains: there are parameters behind it.

    Raises:
        CaptureError: a call of the graph cannot do without data.
    """
    given = [n for n in captured.graph.nodes if "position" in n.meta]
    try:
        _run_without_data(captured, module, given, args)
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise CaptureError([f"a run on tensors without data fails: {type(error).__name__}: {said}"]) from error
    for node in (n for n in given if n.op == "placeholder" and n.meta.get("gradient")):
        for user in (user for user in node.users if user.meta.get("gradient")):
            user.meta["parameters"] = (*user.meta["parameters"], (node.name, 0, True))


def _run_without_data(
    captured: CapturedGraph, module: fx.GraphModule, given: Sequence[fx.Node], args: Sequence[Any]
) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {n: _fake(mode, args[n.meta["position"]]) for n in given}
        held = {str(n.target): fake for n, fake in fakes.items() if n.op == "get_attr"}
        inputs = [fake for n, fake in fakes.items() if n.op == "placeholder"]
        Annotator(replace(captured, constants=held), module, data=False).run(*inputs)


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    fake: FakeTensor = mode.from_tensor(value, static_shapes=True)
    return fake


class _Rewritten:
    """A graph that is written node by node after one of Dynamo's."""

    def __init__(self, names: Mapping[int, str], paths: Paths):
        self.graph, self.names, self.paths = fx.Graph(), names, paths
        self.made: dict[fx.Node, fx.Node] = {}
        self.entry = Mode.now()
        self.modes = [self.entry]  # the last one holds; what autocast replaced lies below
        self.taken = 0

    def add(self, node: fx.Node) -> None:
        """Write one node, or take notice of it where it only sets a mode."""
        if node.op == "placeholder":
            self.made[node] = self._input(node)
        elif not self._sets_mode(node):
            self.made[node] = self._computed(node)
            self.made[node].meta["nn_module_stack"] = self._stack(node)

    def add_transform(self, module: fx.GraphModule, nodes: list[fx.Node]) -> None:
        """Write what a torch.func transform runs as one call."""
        function, given, taken = as_function(module, nodes)
        call = Call(function, self.modes[-1], self.entry)
        called = self.graph.call_function(call, tuple(self.made[node] for node in given))
        called.meta["nn_module_stack"] = self._stack(nodes[-1])
        for i, node in enumerate(taken):
            self.made[node] = self.graph.call_function(operator.getitem, (called, i))
            self.made[node].meta["nn_module_stack"] = self._stack(node)

    def _input(self, node: fx.Node) -> fx.Node:
        position, self.taken = self.taken, self.taken + 1
        if position in self.names:
            name = re.sub(r"\W", "_", self.names[position])
            made = self.graph.create_node("get_attr", name, name=name)
            made.target = made.name  # unique
        else:
            found = re.fullmatch(r"[lg]_(.+?)_?", node.name)
            made = self.graph.placeholder(found[1] if found else node.name)
        made.meta["position"] = position
        return made

    def _computed(self, node: fx.Node) -> fx.Node:
        args: Any = fx.node.map_arg(node.args, self.made.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.made.__getitem__)
        if node.target is traced_mark:
            return self.graph.call_function(marker, args[:1], {"name": args[1]})
        target = checkpointed if getattr(node.target, "__name__", "") == "tag_activation_checkpoint" else node.target
        if node.op in ("get_attr", "output") or self.modes[-1] == self.entry:
            return self.graph.create_node(node.op, target, args, kwargs, _name(node))
        if node.op == "call_module":
            raise CaptureError([f"the module '{node.target}' runs in a region with a mode of its own"])
        function: Any = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else target
        return self.graph.call_function(Call(function, self.modes[-1], self.entry), args, kwargs)

    def _sets_mode(self, node: fx.Node) -> bool:
        name, given = getattr(node.target, "__name__", ""), node.args
        if name == "_set_grad_enabled":
            self.modes[-1] = replace(self.modes[-1], grad=bool(given[0]))
        elif name == "_enter_autocast" and given[0] in AUTOCAST_DEVICES:
            self.modes.append(self._autocast(*given))
        elif name == "_exit_autocast" and len(self.modes) > 1:
            left = self.modes.pop()
            self.modes[-1] = replace(self.modes[-1], grad=left.grad)
        elif _REGIONS.search(name):
            raise CaptureError([f"'{node.name}' begins or ends a region that must stay whole"])
        else:
            return False
        return True

    def _autocast(self, device: Any, dtype: Any = None, enabled: Any = True, _: Any = None) -> Mode:
        state = (device, bool(enabled), (dtype or torch.get_autocast_dtype(device)) if enabled else torch.float32)
        now = self.modes[-1]
        return replace(now, autocast=tuple(state if other[0] == device else other for other in now.autocast))

    def _stack(self, node: fx.Node) -> dict[str, tuple[str, type]]:
        """The calls around a node, as every rung of the capture ladder writes them."""
        stack = {}
        for key, (expression, kind) in (node.meta.get("nn_module_stack") or {}).items():
            module, _, count = key.partition("@")
            if path := self.paths(module, expression):
                stack[f"{path}@{int(count) + 1}" if count else path] = (path, kind)
        return stack


def _name(node: fx.Node) -> str | None:
    """What computes with sizes has names of its own, so that it takes none from what computes with tensors."""
    leaves = pytree.tree_leaves(node.meta.get("example_value"))
    if node.op in ("get_attr", "output") or not leaves or any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "value")
    return f"size_{name.strip('_')}" if node.target is not operator.getitem else "size"
