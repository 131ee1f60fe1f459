"""The drawing as text that other tools read: Graphviz, Mermaid, JSON."""

import json

from ..plan.plan import Plan
from .columns import Picture
from .items import Net, items
from .svg import colours

_SHAPES = {"part": "box", "crossing": "box", "input": "oval", "output": "oval"}
_BRACKETS = {"part": ("[", "]"), "crossing": ("(", ")"), "input": ("([", "])"), "output": ("([", "])")}


def dot(graph: Net) -> str:
    """The graph for Graphviz: `dot -Tsvg`."""
    lines = [
        "digraph plan {",
        f'  label={_quoted(graph.graph["title"])}; labelloc=t; fontname="Helvetica"; rankdir=TB;',
        '  node [fontname="Helvetica", fontsize=11, style="filled,rounded"]; edge [color="#64748b", arrowsize=0.7];',
    ]
    for item in items(graph):
        fill, line = colours(item)
        style = "" if item.kind != "part" else ', style="filled"'
        dashed = "" if item.asked else ', style="filled,rounded,dashed"'
        label = _quoted("\n".join((item.name, *item.lines)))
        tip = _quoted(item.tip)
        look = f'shape={_SHAPES[item.kind]}, fillcolor="{fill}", color="{line}"{style}{dashed}'
        lines.append(f"  {item.key} [label={label}, tooltip={tip}, {look}];")
    lines += [f"  {a} -> {b};" for a, b in graph.edges]
    return "\n".join([*lines, "}", ""])


def mermaid(graph: Net) -> str:
    """The graph for Mermaid, as Markdown pages show it."""
    lines = ["flowchart TD"]
    styles: dict[tuple[str, str, bool], list[str]] = {}
    for item in items(graph):
        left, right = _BRACKETS[item.kind]
        words = "<br/>".join(_entities(line) for line in (item.name, *item.lines))
        lines.append(f'  {item.key}{left}"{words}"{right}')
        styles.setdefault((*colours(item), item.asked), []).append(item.key)
    lines += [f"  {a} --> {b}" for a, b in graph.edges]
    for index, ((fill, line, asked), keys) in enumerate(styles.items()):
        dashes = "" if asked else ",stroke-dasharray:5 4"
        lines.append(f"  classDef look{index} fill:{fill},stroke:{line},color:#1e293b{dashes}")
        lines.append(f"  class {','.join(keys)} look{index}")
    return "\n".join([*lines, ""])


def json_text(plan: Plan, picture: Picture) -> str:
    """The plan, and where each thing of it stands in the drawing.

    `plan` is what `Plan.from_json` reads; `nodes` and `edges` are what `networkx.node_link_graph` reads.
    """
    nodes = []
    for box in picture.boxes:
        item, place = box.item, {"x": box.left, "y": box.top, "width": box.width, "height": box.height}
        words = {"kind": item.kind, "style": item.style, "name": item.name, "lines": list(item.lines)}
        nodes.append({"id": item.key, **words, **place})
    edges = [{"source": wire.source, "target": wire.target} for wire in picture.wires if not wire.back]
    size = {"width": picture.width, "height": picture.height}
    links = {"directed": True, "multigraph": False, "graph": size, "nodes": nodes, "edges": edges}
    return json.dumps({"plan": plan.to_json(), **links}, indent=1) + "\n"


def _quoted(words: str) -> str:
    r"""A string of the dot language that shows just these words: "&" would start an entity, "\" an escape."""
    return '"' + words.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _entities(words: str) -> str:
    """Every character that Mermaid or HTML might read as its own, as a number."""
    return "".join(char if char.isalnum() or char in " .,_-·×…→%/:+" else f"#{ord(char)};" for char in words)
