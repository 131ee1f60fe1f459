"""The second rung: `torch.export`, turned into a captured graph and believed only after a test."""

import operator
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, SymIntArgument, TensorArgument
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..graph.captured_graph import CapturedGraph
from ..graph.mark import cut as marker
from ..graph.nodes import Call, Mode, guard
from ..graph.pytrees import HOLE, Tree, flatten, unflatten
from ..sandbox.example import input_names, one_more_row
from ..sandbox.snapshot import fresh_copies, untouched
from .export_proof import Trial
from .torch_func import as_function, stretches

_REGIONS: Any = torch.ops.higher_order
_ALIAS = torch.ops.aten.alias.default


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    """What `torch.export` makes of `model(*args, **kwargs)`, as a captured graph. The model is left as it was.

    The batch is dynamic where the export takes it so; what it took for granted of the sizes is a guard.

    Raises:
        CaptureError: the export fails, or its graph is not the model: values, gradients, buffers and random numbers are
            compared, with other seeds and other rows too, and the model must keep no state.
    """
    leaves, spec = flatten((args, kwargs))
    with untouched(model):
        trial = Trial(model, spec)
        trial.refuse_state(leaves)
        with untouched(model):
            program, marks = _exported(model, leaves, spec)
        captured = _Rebuilt(program, model, leaves, spec, input_names(model, args, kwargs), marks).captured_graph()
        trial.compare(captured, leaves, seed=1)
        if (more := one_more_row(leaves)) is not None and trial.takes(more):
            trial.compare(captured, more, seed=2)
    return captured


class _Marks(TorchFunctionMode):
    """Writes down the marks that a model carries: each becomes an alias in the exported graph, in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, or what stands for it."""
        if func is not marker or not isinstance(args[0], torch.Tensor):
            return func(*args, **(kwargs or {}))
        self.names.append((kwargs or {}).get("name"))
        return _ALIAS(args[0])


def _exported(model: nn.Module, leaves: list[Any], spec: pytree.TreeSpec) -> tuple[ExportedProgram, list[str | None]]:
    args, kwargs = unflatten(fresh_copies(leaves), spec)
    reasons = []
    for shapes in (_batch_dynamic(args), _batch_dynamic(kwargs)), None:
        named = None if shapes is None else _by_name(model, args, *shapes)
        try:
            with warnings.catch_warnings(), _Marks() as marks:
                warnings.simplefilter("ignore")
                return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=named), marks.names
        except Exception as error:
            reasons.append(f"torch.export: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    raise CaptureError(reasons[-1:])


def _batch_dynamic(value: Any) -> Any:
    def dynamic(leaf: Any) -> Any:
        return {0: Dim.AUTO} if isinstance(leaf, torch.Tensor) and leaf.dim() else None

    return pytree.tree_map(dynamic, value)


def _by_name(model: nn.Module, args: tuple[Any, ...], positional: Any, named: Any) -> Any:
    return (
        (*positional,) if not named else {**dict(zip(input_names(model, args, {}), positional, strict=False)), **named}
    )


class _Rebuilt:
    """An exported program, node by node, as a graph whose parameters and buffers are the model's own."""

    def __init__(
        self,
        program: ExportedProgram,
        model: nn.Module,
        leaves: list[Any],
        spec: pytree.TreeSpec,
        names: list[str],
        marks: list[str | None],
    ):
        self.program, self.model = program, model
        aliases = [n for n in program.graph.nodes if n.target is _ALIAS]
        self.marks = dict(zip(aliases, marks, strict=True)) if len(aliases) == len(marks) else {}
        self.graph, self.made = fx.Graph(), dict[fx.Node, Any]()
        self.constants: dict[str, torch.Tensor] = {}
        self.entry = Mode.now()
        self.classes = {path: type(module) for path, module in model.named_modules()}
        self._inputs(leaves, spec, names)

    def captured_graph(self) -> CapturedGraph:
        nodes = [n for n in self.program.graph.nodes if n.op not in ("placeholder", "output")]
        for run in stretches(nodes):
            self._node(run[0]) if len(run) == 1 else self._region(run)
        return CapturedGraph(self.graph, "export", self._results(), self.constants)

    def _inputs(self, leaves: list[Any], spec: pytree.TreeSpec, names: list[str]) -> None:
        ours = [
            self.graph.placeholder(n) if isinstance(v, torch.Tensor) else v for n, v in zip(names, leaves, strict=True)
        ]
        given = iter(_in_order(ours, spec, self.program.call_spec.in_spec))
        placeholders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        users = []
        for node, told in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if told.kind is InputKind.USER_INPUT:
                self.made[node] = next(given)
                users.append(self.made[node])
            else:
                self.made[node] = self.graph.get_attr(self._own(str(told.target)))
        holds = self.graph.call_function(Call(_Sizes(self.program)), (users,))
        self.graph.call_function(guard, (holds, None, "the sizes that torch.export took for granted"))

    def _own(self, target: str) -> str:
        constant = self.program.constants.get(target)
        if isinstance(constant, torch.Tensor) and target not in dict(self.model.named_buffers()):
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = constant
            return name
        return target

    def _node(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            held = getattr(self.program.graph_module, str(node.target))
            if isinstance(held, torch.Tensor):
                self.constants[str(node.target)] = held
                self.made[node] = self._placed(node, self.graph.get_attr(str(node.target)))
            else:
                self.made[node] = held  # the body of a region: read where it is called
        elif node.target in (_REGIONS.wrap_with_set_grad_enabled, _REGIONS.wrap_with_autocast):
            self._mode_region(node)
        elif node.target is torch.ops.aten.copy_.default and _memory(node.args[1]) is node.args[0]:
            return  # `self.n += 1` is written back to itself, which spoils what was saved for the gradients
        elif node in self.marks:
            given, named = (self.made[node.args[0]],), {"name": self.marks[node]}  # type: ignore[index]  # a node
            self.made[node] = self._placed(node, self.graph.call_function(marker, given, named))
        elif str(node.target) in dir(_REGIONS):
            raise CaptureError([f"torch.export: the graph needs {node.target}, which has bodies of its own"])
        else:
            args: Any = fx.node.map_arg(node.args, self.made.__getitem__)
            kwargs: Any = fx.node.map_arg(node.kwargs, self.made.__getitem__)
            self.made[node] = self._placed(node, self.graph.create_node(node.op, node.target, args, kwargs, node.name))

    def _mode_region(self, node: fx.Node) -> None:
        """Write a body that runs under another grad mode or autocast as one call."""
        if node.target is _REGIONS.wrap_with_set_grad_enabled:
            grad, body, *given = node.args
            mode = Mode(bool(grad), self.entry.autocast)
        else:
            device, dtype, enabled, _, body, *given = node.args
            kind: Any = dtype or torch.get_autocast_dtype(str(device))
            found = (str(device), bool(enabled), kind)
            mode = Mode(self.entry.grad, tuple(found if s[0] == device else s for s in self.entry.autocast))
        call = Call(self.made[body].forward, mode, self.entry)  # type: ignore[index]  # a node
        args = tuple(fx.node.map_arg(v, self.made.__getitem__) for v in given)
        self.made[node] = self._placed(node, self.graph.call_function(call, args))

    def _region(self, nodes: list[fx.Node]) -> None:
        """Write what a torch.func transform runs as one call: its nodes mean nothing outside of it."""
        function, given, taken = as_function(self.program.graph_module, nodes)
        arguments = tuple(self.made[node] for node in given)
        called = self._placed(taken[-1], self.graph.call_function(Call(function), arguments))
        for i, node in enumerate(taken):
            self.made[node] = self._placed(node, self.graph.call_function(operator.getitem, (called, i)))

    def _results(self) -> Tree:
        values: list[Any] = []
        output = next(n for n in reversed(self.program.graph.nodes) if n.op == "output")
        for told, node in zip(self.program.graph_signature.output_specs, output.args[0], strict=True):
            if told.kind is OutputKind.USER_OUTPUT:
                live = isinstance(told.arg, TensorArgument | SymIntArgument) and isinstance(node, fx.Node)
                values.append(
                    self.made[node] if live else told.arg.value if isinstance(told.arg, ConstantArgument) else node
                )
            elif told.kind is OutputKind.BUFFER_MUTATION:
                self.graph.call_method("copy_", (self.graph.get_attr(str(told.target)), self.made[node]))
            else:
                raise CaptureError([f"torch.export: the graph gives a {told.kind.name.lower()}"])
        self.graph.output(tuple(v for v in values if isinstance(v, fx.Node)))
        holes = tuple(HOLE if isinstance(v, fx.Node) else v for v in values)
        return Tree(self.program.call_spec.out_spec, holes)

    def _placed(self, old: fx.Node, new: fx.Node) -> fx.Node:
        stack = {}
        for key, (path, _) in (old.meta.get("nn_module_stack") or {}).items():
            if path in self.classes and path:
                at = key.rpartition("@")[2] if "@" in key else "0"
                stack[path if at == "0" else f"{path}@{int(at) + 1}"] = (path, self.classes[path])
        new.meta["nn_module_stack"] = stack
        return new


class _Sizes:
    """Whether an exported program holds for inputs: `None`, or what it misses."""

    __name__ = "sizes_hold"

    def __init__(self, program: ExportedProgram):
        made = program.module()
        self.check = getattr(made, "_guards_fn", None)
        users = set(program.graph_signature.user_inputs)
        nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
        self.shapes = [getattr(n.meta.get("val"), "shape", None) for n in nodes]

    def __call__(self, inputs: list[Any]) -> str | None:
        for value, shape in zip(inputs, self.shapes, strict=False):
            if shape is not None and any(
                isinstance(s, int) and s != n for s, n in zip(shape, value.shape, strict=True)
            ):
                return f"inputs of {tuple(value.shape)} instead of {tuple(shape)}"
        try:
            if self.check is not None:
                self.check(*inputs)
        except AssertionError as error:
            return str(error)
        return None


def _memory(node: Any) -> Any:
    """The node that made the memory which in-place calls passed on."""
    while node.op == "call_function" and getattr(node.target, "__name__", "").partition(".")[0].endswith("_"):
        node = node.args[0]
    return node


def _in_order(ours: list[Any], spec: pytree.TreeSpec, theirs: pytree.TreeSpec) -> list[Any]:
    """The leaves in the order of the export, which sorts keyword arguments as the signature has them."""
    if spec == theirs:
        return ours
    args, kwargs = unflatten(ours, spec)
    order = theirs.child(1).context
    return pytree.tree_leaves((args, {name: kwargs[name] for name in order}))
