"""Which values are maps along a line, [batch, channels, positions]: a shape alone does not tell them from tokens."""

from torch import fx, nn

from ..graph.captured_graph import Recording, lookup

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


def note_lines(recording: Recording, model: nn.Module) -> None:
    """Write `node.meta["line"]` on each three-dimensional value: it comes from a convolution along a line and the like,
    or was computed from such a value, element by element, for it has its shape.
    """
    for node in recording.graph.nodes:
        if len(shape := node.meta.get("shape", ())) == 3:
            alike = (n for n in node.all_input_nodes if n.meta.get("shape") == shape)
            node.meta["line"] = _makes_line(node, recording, model) or any(n.meta.get("line", False) for n in alike)


def makes_lines(module: object) -> bool:
    """Whether a layer works on maps, so that a three-dimensional value beside it is one along a line."""
    return isinstance(module, _LAYERS)


def _makes_line(node: fx.Node, recording: Recording, model: nn.Module) -> bool:
    if node.op == "call_module":
        return makes_lines(lookup(model, recording.constants, str(node.target)))
    name = str(getattr(node.target, "__name__", node.target)).removeprefix("_").removeprefix("native_")
    return node.op in ("call_function", "call_method") and name.startswith(_CALLS)
