"""Run a captured graph once and write on each node what later passes want to know; `NodeMeta` says what it means."""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..graph.captured_graph import CapturedGraph, Owner
from ..graph.facts import batch_dim
from ..graph.nodes import NodeMeta, held_modules
from ..graph.pytrees import flatten
from ..sandbox.snapshot import fresh_copies, untouched

# What makes or keeps [batch, channels, positions]: functions, by their name in any of torch's spellings, and layers.
MAP_FUNCTIONS = (
    "conv", "max_pool", "avg_pool", "adaptive", "lp_pool", "batch_norm", "instance_norm", "group_norm",
)  # fmt: skip
MAP_LAYERS = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d,
)  # fmt: skip


def annotate(captured: CapturedGraph, model: nn.Module, inputs: list[Any]) -> None:
    """Write into `node.meta` what one run shows. The model is left as it was."""
    with untouched(model), torch.set_grad_enabled(torch.is_grad_enabled()):
        Annotator(captured, model).run(*fresh_copies(inputs))


class Annotator(fx.Interpreter):
    """Runs a graph and looks at what comes of each node. The run may write into the inputs and into the model.

    Args:
        data: the tensors hold data; without it no generator moves, and random numbers are known by who draws them.
    """

    def __init__(self, captured: CapturedGraph, model: nn.Module, data: bool = True):
        owner = Owner(model, captured.constants)  # `captured.module` would write code that nobody runs
        super().__init__(owner, garbage_collect_values=False, graph=captured.graph)  # freed memory looks like a view
        self.model = model
        self.counter = Counter()  # type: ignore[no-untyped-call]  # torch's
        self.random_state: Callable[[], bytes] = _random_state if data else bytes

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run all nodes."""
        self.random, self.batch = self.random_state(), batch_lengths(args)
        with self.counter:  # once for all nodes: to enter it costs as much as running one
            return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and compare what there is before and after."""
        owned = self._note_owned(n)  # before it runs, which may make buffers
        tensors = tensors_in(list(map(self.env.__getitem__, n.all_input_nodes)))
        versions = list(map(attrgetter("_version"), tensors))
        random, flops, draws = self.random, self.counter.flops, self.counter.draws

        out = super().run_node(n)

        self.random = self.random_state()
        # BatchNorm changes its second and third argument without telling the version counter.
        name = str(getattr(n.target, "__name__", n.target))
        written = tensors[1:3] if n.op == "call_function" and name in ("batch_norm", "instance_norm") else []
        for tensor, version in zip(tensors, versions, strict=True):
            if tensor._version != version:
                written.append(tensor)
        n.meta["writes"] = tuple(sorted(filter(None, set(map(storage_of, written)))))
        n.meta["flops"] = self.counter.flops - flops
        drew = random != self.random or self.counter.draws > draws
        n.meta["random"] = drew and n.op not in ("placeholder", "get_attr", "output")
        if isinstance(out, torch.Tensor):
            n.meta.update(tensor_meta(out, self.batch))
            calls_map = name.removeprefix("_").removeprefix("native_").startswith(MAP_FUNCTIONS)
            makes_map = isinstance(owned, MAP_LAYERS) or (n.op in ("call_function", "call_method") and calls_map)
            n.meta["channels_first"] = out.dim() == 3 and channels_first(n, makes_map)
            if (storage := storage_of(out)) is not None:
                n.meta["storage"] = storage
        elif isinstance(out, tuple | list | dict) and (items := tensors_in(out)):
            n.meta["container"] = True  # it never crosses itself: what is taken out of it does
            n.meta["gradient"] = any(map(attrgetter("requires_grad"), items))
        return out

    def _note_owned(self, node: fx.Node) -> Any:
        """Note the parameters and buffers of what a node refers to, which is returned."""
        path, owned = str(node.target), None
        parameters: list[tuple[str, int, bool]] = []
        node.meta["buffers"] = ()
        if node.op in ("call_module", "get_attr"):
            owned = attrgetter(path)(self.module)
            if isinstance(owned, nn.Module):
                for name, parameter in owned.named_parameters(prefix=path):
                    parameters.append((name, parameter.numel(), parameter.requires_grad))
                node.meta["buffers"] = tuple(dict(owned.named_buffers(prefix=path)))
            elif isinstance(owned, nn.Parameter):
                parameters.append((path, owned.numel(), owned.requires_grad))
        for held in held_modules(node):
            prefix = next((name for name, module in self.model.named_modules() if module is held), "")
            parameters += [(name, p.numel(), p.requires_grad) for name, p in held.named_parameters(prefix=prefix)]
        node.meta["parameters"] = tuple(parameters)
        return owned


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the floating point operations of what runs inside, as torch's own counter does, and on tensors without
    data the draws of random numbers: there no generator moves.
    """

    flops = draws = 0
    supports_higher_order_operators = True  # `torch.cond` and its like pass uncounted

    def __enter__(self) -> "Counter":
        # `torch.cond` compiles itself, which under a mode fails, and from then on outside too.
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]  # the same
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]  # the same
        finally:
            self._stance.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call and count it."""
        out = func(*args, **(kwargs or {}))
        if isinstance(func, torch._ops.HigherOrderOperator):
            return out
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.draws += any(isinstance(tensor, FakeTensor) for tensor in tensors_in(out))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        return out


def tensor_meta(value: torch.Tensor, batch: tuple[int, int]) -> NodeMeta:
    """What is written on the node of a tensor. `batch`: what `batch_lengths` says."""
    value = _rows(value)
    shape = tuple(value.shape)
    meta = NodeMeta(shape=shape, dtype=value.dtype, device=value.device, gradient=value.requires_grad)
    meta["bytes"], meta["batch_dim"] = value.numel() * value.element_size(), batch_dim(shape, *batch)
    return meta


def channels_first(node: fx.Node, beside_maps: bool) -> bool:
    """Whether a value of three dimensions is [batch, channels, positions]: a layer on maps makes it or reads it, or it
    was computed from such a value, element by element, for it has its shape.
    """
    shape = node.meta["shape"]
    return beside_maps or any(
        argument.meta.get("channels_first") and argument.meta["shape"] == shape for argument in node.all_input_nodes
    )


def batch_lengths(inputs: Iterable[Any]) -> tuple[int, int]:
    """How long the batch may be: the first tensor in dimension 0, and how many tensors there are."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor) and value.dim()]
    return (_rows(tensors[0]).shape[0] if tensors else 1, len(tensors))


def _rows(value: torch.Tensor) -> torch.Tensor:
    """The value itself; of a nested one what its tensors hold, one below the other."""
    if not value.is_nested:
        return value
    return value.values() if value.layout is torch.jagged else torch.cat([t.flatten() for t in value.unbind()])


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value."""
    return list(filter(torch.is_tensor, flatten(value)[0]))


def storage_of(tensor: torch.Tensor) -> int | None:
    """The identity of a tensor's memory; `None`: it has no plain memory, as sparse ones."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
    return storage._cdata if storage.nbytes() else None


def _random_state() -> bytes:
    state = torch.get_rng_state()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        state = torch.cat([state, *torch.cuda.get_rng_state_all()])
    return state.numpy().tobytes()
