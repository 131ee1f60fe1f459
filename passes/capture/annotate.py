"""Run a captured graph once on real inputs and note on each node what later passes want to know."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..graph.captured_graph import CapturedGraph, Owner, lookup
from ..graph.facts import batch_dim
from ..sandbox.snapshot import fresh_copies, untouched


def annotate(captured: CapturedGraph, model: nn.Module, inputs: list[Any]) -> None:
    """Write into `node.meta` what one run shows. The model is left as it was.

    Guarantees for each node, where it applies:
        shape, dtype, bytes, gradient: of the tensor that it makes; `gradient`: it requires grad.
        container: it makes a tuple, list or dict of tensors; `gradient` then speaks of what that holds.
        storage: the memory that the tensor lives in; views share it.
        writes: the memories that the node changes in place.
        random: it draws random numbers.
        flops: of one forward run; one multiply-add counts 2.
        batch_dim: where a tensor keeps the batch: its size there is the first input's in dimension 0; None: nowhere.
        line: whether a three-dimensional tensor is [batch, channels, positions]; see `note_lines`.
        parameters, buffers: what a module or `get_attr` node refers to; parameters as (name, scalars, trained).
    """
    with untouched(model), torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad():
        note(captured, model, fresh_copies(inputs))


def note(captured: CapturedGraph, model: nn.Module, inputs: list[Any], data: bool = True) -> None:
    """The same where nothing need be spared: the run may write into the inputs and into the model.

    Args:
        data: the tensors hold data; without it no generator moves, and random numbers are known by who draws them.
    """
    for node in captured.graph.nodes:
        _note_owned(node, captured, model)
    _Annotator(captured, model, _random_states if data else list).run(*inputs)
    batch = next((v.shape[0] for v in inputs if isinstance(v, torch.Tensor) and v.dim()), 1)
    for node in captured.graph.nodes:
        if "shape" in node.meta:
            node.meta["batch_dim"] = batch_dim(node.meta["shape"], batch)
    note_lines(captured, model)


class _Annotator(fx.Interpreter):
    def __init__(self, captured: CapturedGraph, model: nn.Module, random_states: Callable[[], list[bytes]]):
        self.random_states = random_states
        owner = Owner(model, captured.constants)  # `captured.module` would write code that nobody runs
        super().__init__(owner, garbage_collect_values=False, graph=captured.graph)  # freed memory looks like a view
        self.counted = Counter()  # type: ignore[no-untyped-call]  # torch's

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.random = self.random_states()
        with self.counted:  # once for all nodes: to enter it costs as much as running one
            return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        given = [self.env[a] for a in n.all_input_nodes]
        tensors = list(_tensors(given))
        versions, random = [t._version for t in tensors], self.random
        flops, draws = self.counted.flops, self.counted.draws
        out = super().run_node(n)
        self.random = self.random_states()
        n.meta["flops"] = self.counted.flops - flops
        drew = random != self.random or self.counted.draws > draws
        n.meta["random"] = n.op not in ("placeholder", "get_attr", "output") and drew
        written = {_storage(t) for t, v in zip(tensors, versions, strict=True) if t._version != v}
        written |= {_storage(t) for t in tensors[1:3] if _moves_statistics(n)}
        n.meta["writes"] = tuple(sorted(s for s in written if s is not None))
        _note_value(n, out)
        return out


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the floating point operations of what runs inside, as torch's own counter does, and on tensors without
    data the draws of random numbers: there no generator moves.
    """

    flops = draws = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.draws += any(isinstance(tensor, FakeTensor) for tensor in _tensors(out))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        return out


def _note_value(node: fx.Node, value: Any) -> None:
    if isinstance(value, tuple | list | dict) and (held := list(_tensors(value))):
        node.meta["container"] = True  # it never crosses itself: what is taken out of it does
        node.meta["gradient"] = any(t.requires_grad for t in held)
    if not isinstance(value, torch.Tensor):
        return
    node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
    node.meta["bytes"] = value.numel() * value.element_size()
    node.meta["gradient"] = value.requires_grad
    node.meta["device"] = value.device
    if (storage := _storage(value)) is not None:
        node.meta["storage"] = storage


def _note_owned(node: fx.Node, captured: CapturedGraph, model: nn.Module) -> None:
    node.meta["parameters"], node.meta["buffers"] = (), ()
    if node.op not in ("call_module", "get_attr"):
        return
    path = str(node.target)
    owned = lookup(model, captured.constants, path)
    if isinstance(owned, nn.Module):
        node.meta["parameters"] = tuple((n, p.numel(), p.requires_grad) for n, p in _named(owned, path))
        node.meta["buffers"] = tuple(f"{path}.{name}" for name, _ in owned.named_buffers())
    elif isinstance(owned, nn.Parameter):
        node.meta["parameters"] = ((path, owned.numel(), owned.requires_grad),)


def _named(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(prefix=path)


def _moves_statistics(node: fx.Node) -> bool:
    """BatchNorm changes its second and third argument without telling the version counter."""
    return getattr(node.target, "__name__", "") in ("batch_norm", "instance_norm")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> int | None:
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without plain memory
        return None
    return storage._cdata if storage.nbytes() else None


def _random_states() -> list[bytes]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        states += torch.cuda.get_rng_state_all()
    return [s.numpy().tobytes() for s in states]


# What makes or keeps them, by its name in any of torch's spellings, and as layers.
_CALLS = (
    "conv",
    "max_pool",
    "avg_pool",
    "adaptive",
    "lp_pool",
    "batch_norm",
    "instance_norm",
    "group_norm",
)


_LAYERS = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d,
)  # fmt: skip


def note_lines(captured: CapturedGraph, model: nn.Module) -> None:
    """Write `node.meta["line"]` on each three-dimensional value: it comes from a convolution along a line and the like,
    or was computed from such a value, element by element, for it has its shape.
    """
    for node in captured.graph.nodes:
        if len(shape := node.meta.get("shape", ())) == 3:
            alike = (n for n in node.all_input_nodes if n.meta.get("shape") == shape)
            node.meta["line"] = _makes_line(node, captured, model) or any(n.meta.get("line", False) for n in alike)


def makes_lines(module: object) -> bool:
    """Whether a layer works on maps, so that a three-dimensional value beside it is one along a line."""
    return isinstance(module, _LAYERS)


def _makes_line(node: fx.Node, captured: CapturedGraph, model: nn.Module) -> bool:
    if node.op == "call_module":
        return makes_lines(lookup(model, captured.constants, str(node.target)))
    name = str(getattr(node.target, "__name__", node.target)).removeprefix("_").removeprefix("native_")
    return node.op in ("call_function", "call_method") and name.startswith(_CALLS)
