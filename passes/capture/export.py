"""The second rung: `torch.export`, turned into a captured graph and believed only after a test."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind

from ..errors import CaptureError
from ..graph.captured_graph import CapturedGraph
from ..graph.mark import MarkListener, cut
from ..graph.nodes import Call, Mode, SizeCheck, guard
from ..graph.own_names import constant_name, sources_forgotten
from ..graph.pytrees import HOLE, Nesting, Tree, flatten, take_apart, unflatten
from ..sandbox.example import input_names, one_more_row
from ..sandbox.journal import undone
from ..sandbox.snapshot import fresh_copies, tensor_names, untouched
from .export_proof import Trial
from .graph_rewriter import GraphRewriter, Rules

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
    with untouched(model), sources_forgotten():
        trial = Trial(model, spec)
        plain = trial.refuse_state(leaves)
        with untouched(model):
            exported = _exported(model, leaves, spec)
        names = [
            n for n, v in zip(input_names(model, args, kwargs), leaves, strict=True) if isinstance(v, torch.Tensor)
        ]
        captured = _ExportRewriter(exported, model).captured_graph(names)
        trial.compare(captured, leaves, seed=1)
        captured = replace(captured, outputs=captured.outputs.renewing(plain.results))
        if (more := one_more_row(leaves)) is not None and trial.takes(more):
            trial.compare(captured, more, seed=2)
    return captured


_MODEL = "model."
_LIVE = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


class _Flat(nn.Module):
    """A model that takes and returns tensors only: torch.export knows no other classes than its own.

    Args:
        leaves: of one call; their tensors are the inputs.
    """

    model: nn.Module
    _call: Callable[[], tuple[list[Any], Nesting, list[Tree]]]

    def __init__(self, model: nn.Module, leaves: list[Any], spec: Nesting, trees: list[Tree]):
        super().__init__()
        self.model, self.training = model, model.training
        self._call = lambda: (leaves, spec, trees)  # in a closure: torch.export looks into attributes

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        """Run the model; `trees[-1]` is then how its results are nested."""
        leaves, spec, trees = self._call()
        feed = iter(tensors)
        args, kwargs = unflatten([next(feed) if isinstance(v, torch.Tensor) else v for v in leaves], spec)
        results: Any = self.model(*args, **kwargs)
        values, tree = take_apart(results, lambda v: isinstance(v, _LIVE))
        trees.append(tree)
        return tuple(values)


class _Exported(NamedTuple):
    program: ExportedProgram  # of the `_Flat` model
    marks: list[str | None]  # the names of the model's marks: each is an alias in the graph, in this order
    results: Tree


def _exported(model: nn.Module, leaves: list[Any], spec: Nesting) -> _Exported:
    names, trees = list[str | None](), list[Tree]()

    def alias(value: Any, name: str | None) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        names.append(name)
        return _ALIAS(value)

    leaves = fresh_copies(leaves)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    rows_are_free = {"tensors": tuple({0: Dim.AUTO} if tensor.dim() else None for tensor in tensors)}
    cause: Exception | None = None
    for shapes in (rows_are_free, None):
        names.clear()
        try:
            with warnings.catch_warnings(), _silent(), MarkListener(alias):
                warnings.simplefilter("ignore")
                flat = _Flat(model, leaves, spec, trees)
                program = torch.export.export(flat, tensors, strict=False, dynamic_shapes=shapes)
                return _Exported(program, names, trees[-1])
        except Exception as error:
            cause = error
    line = next(iter(str(cause).strip().splitlines()), "")
    raise CaptureError([f"torch.export: {type(cause).__name__}: {line}"]) from cause


@contextmanager
def _silent() -> Iterator[None]:
    """Inside the block torch logs nothing of what fails: it prints whole graphs."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    loggers = [logging.getLogger(name) for name in ("torch", *names)]
    levels = [logger.level for logger in loggers]

    def loud() -> None:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

    with undone(loud):
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield


class _ExportRewriter(GraphRewriter):
    """An exported program as a graph whose parameters and buffers are the model's own."""

    def __init__(self, exported: _Exported, model: nn.Module):
        self.program, marks, self.results = exported
        super().__init__(self.program.graph_module)
        aliases = self.program.graph.find_nodes(op="call_function", target=_ALIAS)
        self.marks = dict(zip(aliases, marks, strict=True)) if len(aliases) == len(marks) else {}
        self.constants: dict[str, torch.Tensor] = {}
        self.classes = {path: type(module) for path, module in model.named_modules() if path}
        self.buffers = {name for name, _ in model.named_buffers()}
        self.tensors = set(tensor_names(model).values())

    def captured_graph(self, names: list[str]) -> CapturedGraph:
        """The graph for one call; the names are those of its tensors."""
        self._inputs(names)
        self.write(n for n in self.program.graph.nodes if n.op not in ("placeholder", "output"))
        return CapturedGraph(self.graph, "export", self._results(), self.constants)

    def locate(self, module: str, path: str, kind: type) -> tuple[str, type] | None:
        """By its path, which is the model's own."""
        path = path.removeprefix(_MODEL)
        return (path, self.classes[path]) if path in self.classes else None

    def refusal(self, node: fx.Node) -> str | None:
        """It has bodies of its own."""
        has_bodies = str(node.target) in dir(_REGIONS)
        return f"torch.export: the graph needs {node.target}, which has bodies of its own" if has_bodies else None

    def _inputs(self, names: list[str]) -> None:
        """Write placeholders for the tensors of a call, `get_attr` for those of the model, and a guard on sizes."""
        taken = [self.graph.placeholder(name) for name in names]
        arguments = iter(taken)
        placeholders = self.program.graph.find_nodes(op="placeholder")
        for node, described in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if described.kind is InputKind.USER_INPUT:
                self.made[node] = next(arguments)
            else:
                name = str(described.target)
                constant, target = self.program.constants.get(name), name.removeprefix(_MODEL)
                if isinstance(constant, torch.Tensor) and target not in self.buffers:
                    target = self._constant(constant)
                self.made[node] = self.graph.get_attr(target)
        holds = self.graph.call_function(Call(_Sizes(self.program)), (taken,))
        self.graph.call_function(guard, (holds, None, "the sizes that torch.export took for granted"))

    def _constant(self, tensor: torch.Tensor) -> str:
        name = constant_name(len(self.constants), self.tensors)
        self.constants[name] = tensor
        return name

    def _attribute(self, node: fx.Node) -> None:
        target = str(node.target)
        attribute = getattr(self.owner, target)
        if isinstance(attribute, torch.Tensor):
            self.stands_for(node, self.graph.get_attr(self._constant(attribute)))
        else:
            self.made[node] = attribute  # the body of a region: read where it is called

    def _mark(self, node: fx.Node) -> None:
        if node in self.marks:
            self.stands_for(node, self.graph.call_function(cut, self.mapped(node.args), {"name": self.marks[node]}))
        else:
            self.copy(node)

    def _grad_region(self, node: fx.Node) -> None:
        grad, body, *args = node.args
        self._region(node, replace(self.mode, grad=bool(grad)), body, args)

    def _autocast_region(self, node: fx.Node) -> None:
        device, dtype, enabled, _, body, *args = node.args
        self._region(node, self.autocast(device, dtype, enabled), body, args)  # type: ignore[arg-type]  # literals

    def _region(self, node: fx.Node, mode: Mode, body: Any, args: list[Any]) -> None:
        """Write a body that runs under another grad mode or autocast as one call."""
        call = Call(self.made[body].forward, mode, self.entry)
        self.stands_for(node, self.graph.call_function(call, self.mapped(tuple(args))))

    RULES: ClassVar[Rules] = {
        "get_attr": _attribute,
        _ALIAS: _mark,
        _REGIONS.wrap_with_set_grad_enabled: _grad_region,
        _REGIONS.wrap_with_autocast: _autocast_region,
    }

    def _results(self) -> Tree:
        """Write the output; return how the model's result is built."""
        values: list[Any] = []
        returned: Any = self.program.graph.output_node().args[0]
        for described, node in zip(self.program.graph_signature.output_specs, returned, strict=True):
            if described.kind is not OutputKind.USER_OUTPUT:
                raise CaptureError([f"torch.export: the graph gives a {described.kind.name.lower()}"])
            values.append(self.made[node] if isinstance(node, fx.Node) else node)
        self.graph.output(tuple(v for v in values if isinstance(v, fx.Node)))
        feed = iter([HOLE if isinstance(v, fx.Node) else v for v in values])
        return replace(self.results, constants=tuple(next(feed) if c is HOLE else c for c in self.results.constants))


class _Sizes(SizeCheck):
    """Whether an exported program holds for inputs: `None`, or what it misses."""

    __name__ = "sizes_hold"

    def __init__(self, program: ExportedProgram):
        self.check = getattr(_anonymous(program).module(), "_guards_fn", None)
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


def _anonymous(program: ExportedProgram) -> ExportedProgram:
    """The program with other names for the tensors of the model: `module()` writes them into source as they are."""
    targets = dict.fromkeys((*program.state_dict, *program.constants))
    names: dict[Any, str] = {name: f"tensor_{i}" for i, name in enumerate(targets)}
    signature = program.graph_signature
    inputs, outputs = (
        [replace(spec, target=names.get(spec.target, spec.target)) for spec in specs]
        for specs in (signature.input_specs, signature.output_specs)
    )
    result = copy.copy(program)
    result._graph_signature = ExportGraphSignature(inputs, outputs)
    result._state_dict = {names[name]: value for name, value in program.state_dict.items()}
    result._constants = {names[name]: value for name, value in program.constants.items()}
    return result
