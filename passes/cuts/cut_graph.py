"""From the user's cuts to the plan of a graph, in one step."""

from torch import fx, nn

from ..plan.partition import partition
from ..plan.plan import Plan
from .resolve import Resolved, resolve
from .specs import Cuts


def cut_graph(
    graph: fx.Graph, cuts: Cuts, model: nn.Module, capture: str, strict: bool = True
) -> tuple[Plan, Resolved]:
    """The plan of an annotated graph of `model`, cut where the user says, and what became of each cut.

    Args:
        capture: the rung of the capture ladder that gave the graph.
        strict: cuts that do not fit are errors.

    Raises:
        CutError: cuts do not fit the model.
    """
    modules = [path for path, _ in model.named_modules() if path]
    resolved = resolve(graph, cuts, modules, strict)
    return partition(graph, resolved.edges, type(model).__name__, capture, resolved.notes), resolved
