"""The drawing: every format holds every part and crossing, nothing lies on anything else, nothing is left to chance."""

import builtins
import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html import escape, unescape
from itertools import pairwise

import networkx as nx
import pytest

import dnigraph
from dnigraph.passes.draw import FORMATS, DrawError, draw, rendered
from dnigraph.passes.draw.columns import Picture, place
from dnigraph.passes.draw.items import net, short
from dnigraph.passes.draw.rows import Box, length, spread
from dnigraph.passes.draw.wires import Wire
from dnigraph.passes.errors import DniGraphError, PlanError
from dnigraph.passes.plan.plan import Crossing, Part, Plan

SVG = "{http://www.w3.org/2000/svg}"


def part(index: int, inputs: tuple[str, ...], outputs: tuple[str, ...], parameters: int = 1000) -> Part:
    nodes = (f"first_{index}", f"last_{index}")
    return Part(f"part_{index}", index, nodes, inputs, outputs, parameters, 2 * parameters)


def crossing(node: str, producer: int, *consumers: int, **facts: object) -> Crossing:
    usual = {"shape": (8, 64), "dtype": "float32", "bytes": 2048, "gradient": True, "boundary": "dni", "head": "linear"}
    names = tuple(f"part_{index}" for index in consumers)
    return Crossing(node, node, f"part_{producer}", names, **{**usual, **facts})  # type: ignore[arg-type]


def chain(count: int) -> Plan:
    values = ["x", *(f"h{index}" for index in range(count - 1)), "y"]
    parts = tuple(part(index, (values[index],), (values[index + 1],)) for index in range(count))
    crossings = tuple(crossing(f"h{index}", index, index + 1) for index in range(count - 1))
    return Plan("Chain", "record", (), parts, crossings, ("x",))


def unet() -> Plan:
    parts = (
        part(0, ("x",), ("a", "skip0")),
        part(1, ("a",), ("b", "skip1")),
        part(2, ("b",), ("c", "skip2")),
        part(3, ("c",), ("d",)),
        part(4, ("d", "skip0", "skip1", "skip2", "mask"), ("y",)),
    )
    steps = [crossing(name, index, index + 1) for index, name in enumerate("abcd")]
    skips = [crossing(f"skip{index}", index, 4, asked=False) for index in range(3)]
    return Plan("UNet", "record", (), parts, (*steps, *skips), ("x", "mask"))


def towers() -> Plan:
    parts = (
        part(0, ("image", "mask"), ("a",)),
        part(1, ("words",), ("b", "aux")),
        part(2, ("a",), ("c",)),
        part(3, ("b", "mask"), ("d",)),
        part(4, ("c", "d", "b"), ("y",)),
    )
    crossings = (
        crossing("a", 0, 2),
        crossing("b", 1, 3, 4, boundary="oracle"),
        crossing("c", 2, 4, boundary="bp-lambda"),
        crossing("d", 3, 4, gradient=False, boundary=None, head=None, shape=None, dtype="int", bytes=0),
    )
    return Plan("Towers", "export", (), parts, crossings, ("image", "words", "mask"))


def wild(seed: int, count: int) -> Plan:
    """Parts that read whatever came before."""
    dice = random.Random(seed)
    crossings = []
    for index in range(count - 1):
        for turn in range(dice.choice([1, 1, 2])):
            steps = {min(count - 1, index + 1 + int(dice.expovariate(0.9))) for _ in range(dice.choice([1, 2]))}
            facts = {"shape": (8,) * dice.randint(0, 6), "asked": dice.random() < 0.8, "gradient": dice.random() < 0.8}
            crossings.append(crossing(f"h{index}_{turn}", index, *sorted(steps), **facts))
    parts = []
    for index in range(count):
        read = tuple(each.node for each in crossings if f"part_{index}" in each.consumers)
        made = tuple(each.node for each in crossings if each.producer == f"part_{index}")
        extra = ("mask",) if dice.random() < 0.1 else ()
        aux = (f"aux{index}",) if dice.random() < 0.1 or index == count - 1 else ()
        parts.append(part(index, (read or ("x",)) + extra, made + aux))
    return Plan("Wild", "record", (), tuple(parts), tuple(crossings), ("x", "mask"))


def strange() -> Plan:
    """Names with everything that some format reads as its own; no shapes, no costs."""
    name = 'a<b>"c"&amp;\\d#e;`f`'
    parts = (Part(name, 0, (name,), ("x&y",), (name,), 0), Part("q\x00\n", 1, (), (name,), ("<out>",), 0))
    return Plan(name, "record", (), parts, (Crossing(name, name, name, ("q\x00\n",)),), ("x&y",), (name,))


def one() -> Plan:
    return chain(1)


PLANS = {make.__name__: make() for make in (one, unet, towers, strange)} | {"chain": chain(30), "two": chain(2)}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def svg_of(plan: Plan) -> ET.Element:
    return ET.fromstring(rendered(plan, ".svg"))


def words_of(root: ET.Element) -> set[str]:
    return {"".join(each.itertext()) for each in root.iter() if each.tag in (f"{SVG}text", f"{SVG}title")}


def names_of(plan: Plan) -> list[str]:
    """The names as a drawing shows them: XML forbids some characters."""
    return [each.name.replace("\x00", "□") for each in (*plan.parts, *plan.crossings)]


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".png"])
@every_plan
def test_a_drawing_is_written_where_it_was_asked(plan, suffix, tmp_path):
    path = draw(plan, tmp_path / f"graph{suffix}")

    assert path == tmp_path / f"graph{suffix}"
    assert path.read_bytes() == rendered(plan, suffix)
    assert path.read_bytes() == rendered(plan, suffix.upper())


@every_plan
def test_the_svg_names_every_part_crossing_input_and_output(plan):
    words = "\n".join(words_of(svg_of(plan)))

    for name in [*names_of(plan), *plan.inputs]:
        assert name in words
    assert {item["name"] for item in json.loads(rendered(plan, ".json"))["nodes"] if item["kind"] == "output"}


def test_the_svg_says_what_crosses_and_what_stands_there():
    words = words_of(svg_of(towers()))

    assert {"float32[8,64] · 2.0 KiB", "oracle · linear · 0 parameters", "as it is", "int"} <= words
    assert {"1.0 k parameters · 2.0 kFLOP", "first_0 … last_0 (2)"} <= words


def test_the_legend_explains_what_is_there_and_nothing_else():
    words = words_of(svg_of(towers()))

    legend = {each for each in words if each.startswith(("crossing", "goes around", "part,", "value", "input or"))}
    assert legend == {
        "input or output of the model",
        "part, and its share of parameters",
        "crossing, dni boundary",
        "crossing, oracle boundary",
        "crossing, bp-lambda boundary",
        "crossing as it is, no gradient",
        "value",
        "value without a gradient",
    }
    assert "goes around the cuts, cut too" in words_of(svg_of(unet()))


def test_every_box_and_line_has_a_tooltip():
    root = svg_of(unet())

    picture = place(net(unet()))
    tips = ["".join(each.itertext()) for each in root.iter(f"{SVG}title")]
    assert len(tips) == 1 + len(picture.boxes) + len(picture.wires)
    assert {"skip0 → part_4", "gradient: skip0 → part_0", "input of the model: mask"} <= set(tips)


def test_the_svg_needs_nothing_from_elsewhere():
    for suffix in (".svg", ".html"):
        text = rendered(unet(), suffix).decode()

        assert not re.search(r"(href|src|@import|url\()", text)
        assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


@every_plan
def test_the_html_is_one_page_with_the_drawing_and_the_tables(plan):
    page = rendered(plan, ".html").decode()

    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    cells = {"".join(each.itertext()) for each in root.iter("td")}
    assert len(list(root.iter(f"{SVG}svg"))) == 1
    assert len(list(root.iter("table"))) == (2 if plan.crossings else 1)
    assert set(names_of(plan)) <= cells
    assert ["".join(each.itertext()) for each in root.iter("li")] == list(plan.notes)


@every_plan
def test_the_json_holds_the_plan_and_the_places(plan):
    data = json.loads(rendered(plan, ".json"))

    graph = nx.node_link_graph(data, edges="edges")
    boxes = {name: box for _, name, box in _triples(graph)}
    assert Plan.from_json(data["plan"]) == plan
    assert nx.utils.graphs_equal(nx.DiGraph(graph.edges), nx.DiGraph(net(plan).edges))
    assert {each.name for each in (*plan.parts, *plan.crossings)} <= set(boxes)
    assert all(box["x"] + box["width"] <= data["graph"]["width"] for box in boxes.values())


def _triples(graph):
    return [(key, facts["name"], facts) for key, facts in graph.nodes(data=True)]


@every_plan
def test_the_dot_text_has_every_node_and_edge_of_the_net(plan):
    text = rendered(plan, ".dot").decode()

    labels = dict(re.findall(r'^  ([pcio]\d+) \[label="((?:[^"\\]|\\.)*)"', text, flags=re.MULTILINE))
    edges = set(re.findall(r"^  (\w+) -> (\w+);$", text, flags=re.MULTILINE))
    graph = net(plan)
    assert set(labels) == set(graph) and edges == set(graph.edges)
    for key, item in graph.nodes(data="item"):
        shown = re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), labels[key]).replace("&amp;", "&")
        assert shown == "\n".join((item.name, *item.lines))


@every_plan
def test_the_mermaid_text_has_every_node_and_edge_of_the_net(plan):
    text = rendered(plan, ".mmd").decode()

    labels = dict(re.findall(r'^  ([pcio]\d+)[(\[]+"([^"]*)"[)\]]+$', text, flags=re.MULTILINE))
    edges = set(re.findall(r"^  (\w+) --> (\w+)$", text, flags=re.MULTILINE))
    graph = net(plan)
    assert text.startswith("flowchart TD\n")
    assert set(labels) == set(graph) and edges == set(graph.edges)
    for key, item in graph.nodes(data="item"):
        lines = [re.sub(r"#(\d+);", lambda found: chr(int(found[1])), line) for line in labels[key].split("<br/>")]
        assert lines == [item.name, *item.lines]


# ----------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "name, words",
    [
        ("graph.jpg", r"cannot be written as '.jpg'; formats: .svg, .html, .png, .dot, .mmd, .json"),
        ("graph.svgz", r"cannot be written as '.svgz'; formats: .*; nearest: .svg"),
        ("graph", r"needs a suffix; formats: .svg"),
    ],
)
def test_a_format_that_is_not_there_is_refused_with_those_that_are(name, words, tmp_path):
    with pytest.raises(DrawError, match=words) as caught:
        draw(unet(), tmp_path / name)

    assert caught.value.known == tuple(FORMATS)
    assert isinstance(caught.value, DniGraphError)
    assert not list(tmp_path.iterdir())


def test_a_png_without_its_package_names_the_extra(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest):
        if name == "cairosvg":
            raise ImportError("No module named 'cairosvg'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "graph.png").write_text("kept")

    with pytest.raises(DrawError, match=r"pip install dnigraph\[png\]"):
        draw(unet(), tmp_path / "graph.png")

    assert (tmp_path / "graph.png").read_text() == "kept"


@pytest.mark.skipif(importlib.util.find_spec("cairosvg") is None, reason="needs the extra: dnigraph[png]")
def test_a_png_is_a_png():
    assert rendered(unet(), ".png").startswith(b"\x89PNG\r\n\x1a\n")


def test_every_part_that_is_missing_is_named():
    plan = dataclasses.replace(chain(2), crossings=(crossing("a", 0, 11), crossing("b", 7, 1)))

    with pytest.raises(PlanError) as caught:
        rendered(plan, ".svg")

    assert caught.value.misfits == (
        "crossing 'a': there is no part 'part_11'; nearest: part_1, part_0",
        "crossing 'b': there is no part 'part_7'; nearest: part_1, part_0",
    )


def test_parts_that_wait_for_each_other_are_named():
    plan = dataclasses.replace(chain(2), crossings=(crossing("a", 0, 1), crossing("b", 1, 0)))

    with pytest.raises(PlanError, match="parts wait for each other: part_0 → part_1 → part_0"):
        rendered(plan, ".mmd")


# ---------------------------------------------------------------------------------------------- places


@every_plan
def test_parts_are_in_odd_layers_and_edges_lead_on(plan):
    graph = net(plan)

    layer = dict(graph.nodes(data="layer"))
    assert all((layer[key] % 2 == 1) == (key[0] == "p") for key in graph)
    assert all(layer[a] < layer[b] for a, b in graph.edges)


@pytest.mark.parametrize("plan", [*PLANS.values(), *(wild(seed, 2 + seed * 7 % 49) for seed in range(21))])
def test_no_box_lies_on_another_and_no_line_runs_through_a_box(plan):
    picture = place(net(plan))

    assert _overlaps(picture) == []
    assert [(wire, box.item.name) for wire in picture.wires for box in picture.boxes if _through(wire, box)] == []
    assert {(w.source, w.target) for w in picture.wires if not w.back} == set(net(plan).edges)
    assert all(0 <= x <= picture.width and 0 <= y <= picture.height for w in picture.wires for x, y in w.points)


@pytest.mark.parametrize("plan", [*PLANS.values(), *(wild(seed, 8 + seed) for seed in range(21))])
def test_every_line_meets_the_edge_of_its_boxes(plan):
    picture = place(net(plan))

    boxes = {box.item.key: box for box in picture.boxes}
    for wire in picture.wires:
        (x, start), (to, end) = wire.points[0], wire.points[-1]
        source, target = boxes[wire.source], boxes[wire.target]
        assert source.left < x < source.right and target.left < to < target.right
        assert (start, end) == ((source.top, target.bottom) if wire.back else (source.bottom, target.top))


def _overlaps(picture: Picture) -> list[tuple[Box, Box]]:
    pairs = [(a, b) for index, a in enumerate(picture.boxes) for b in picture.boxes[:index]]
    return [(a, b) for a, b in pairs if a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom]


def _through(wire: Wire, box: Box) -> bool:
    inside = ((box.left < x < box.right and box.top < y < box.bottom) for x, y in _along(wire))
    return any(inside)


def _along(wire: Wire) -> list[tuple[float, float]]:
    """Points along the line; a curve's upright ends lie between the rows' edges, and its S between two rows."""
    points = list(wire.points)
    if wire.curved:
        (_, b), (c, d), (e, f), (_, h) = points
        half, steps = (d + f) / 2, [step / 30 for step in range(31)]
        xs = [c + (e - c) * (3 * t**2 - 2 * t**3) for t in steps]
        ys = [d * (1 - t) ** 3 + half * 3 * t * (1 - t) + f * t**3 for t in steps]
        return [(c, (b + d) / 2), *zip(xs, ys, strict=True), (e, (f + h) / 2)]
    ends = pairwise(points)
    return [(a + (c - a) * t / 60, b + (d - b) * t / 60) for (a, b), (c, d) in ends for t in range(61)]


@pytest.mark.parametrize("plan", [*PLANS.values(), *(wild(seed, 8 + seed) for seed in range(21))])
def test_lines_of_different_values_never_run_on_top_of_each_other(plan):
    skips = [wire for wire in place(net(plan)).wires if not wire.curved]

    runs = [(wire.source, run) for wire in skips for run in pairwise(wire.points)]
    shared = [(a, b) for a, one in runs for b, other in runs if a < b and _share(one, other)]

    assert shared == []


def _share(one: tuple, other: tuple) -> bool:
    """Whether two level or two upright runs have more than a point in common."""
    for along, across in ((0, 1), (1, 0)):
        if one[0][across] == one[1][across] == other[0][across] == other[1][across]:
            (a, b), (c, d) = (sorted(point[along] for point in run) for run in (one, other))
            return max(a, c) < min(b, d)
    return False


def test_an_input_stands_just_above_its_first_reader():
    plan = dataclasses.replace(chain(3), inputs=("x", "late"))
    late = dataclasses.replace(plan.parts[2], inputs=("h1", "late"))
    boxes = {b.item.name: b for b in place(net(dataclasses.replace(plan, parts=(*plan.parts[:2], late)))).boxes}

    assert boxes["part_1"].bottom < boxes["late"].top < boxes["late"].bottom < boxes["part_2"].top


def test_what_skips_rows_stands_aside_of_what_goes_straight_on():
    plan = unet()
    skips_first = dataclasses.replace(plan, crossings=plan.crossings[4:] + plan.crossings[:4])

    boxes = {box.item.name: box for box in place(net(skips_first)).boxes}

    assert len({boxes[name].middle for name in ("x", "part_0", "a", "part_1", "b", "part_4", "y")}) == 1
    assert all(boxes[f"skip{index}"].left > boxes["abc"[index]].right for index in range(3))


def test_a_chain_stands_straight():
    picture = place(net(chain(6)))

    assert len({box.middle for box in picture.boxes}) == 1


def test_a_long_chain_is_folded_into_columns():
    picture = place(net(chain(30)))

    assert len({round(box.middle) for box in picture.boxes if box.item.kind == "part"}) == 5
    assert 1 < picture.width / picture.height < 2


def test_parallel_parts_stand_side_by_side():
    tops = {box.item.name: box.top for box in place(net(towers())).boxes}

    assert tops["part_0"] == tops["part_1"] < tops["part_2"] == tops["part_3"] < tops["part_4"]


def test_every_line_of_words_fits_its_box():
    for plan in PLANS.values():
        for box in place(net(plan)).boxes:
            assert all(length(line, 11.0) < box.width for line in box.item.lines)
            assert length(short(box.item.name), 13.0) < box.width


def test_spread_keeps_the_distances_and_moves_as_little_as_it_can():
    assert spread([0.0, 0.0], [10.0], [1.0, 1.0]) == [-5.0, 5.0]
    assert spread([0.0, 50.0], [10.0], [1.0, 1.0]) == [0.0, 50.0]
    assert spread([0.0, 0.0], [10.0], [3.0, 1.0]) == [-2.5, 7.5]
    assert spread([0.0, 0.0], [10.0], [3.0, 1.0], low=-1.0) == [-1.0, 9.0]
    assert spread([0.0, 50.0], [10.0], [1.0, 1.0], high=40.0) == [0.0, 40.0]
    assert spread([], [], []) == []


def test_a_long_name_keeps_its_ends():
    assert short("encoder_layers_11_attention_output_dense", 15) == "encoder…t_dense"
    assert short("fc1", 15) == "fc1"


# ------------------------------------------------------------------------------------------ determinism


def busy_chain() -> Plan:
    """A chain that is folded, with several boxes in a row."""
    plan = chain(24)
    parts = tuple(dataclasses.replace(p, outputs=(*p.outputs, f"{p.name}_a", f"{p.name}_b")) for p in plan.parts)
    return dataclasses.replace(plan, parts=parts)


def test_the_same_plans_give_the_same_bytes_in_every_process():
    plans, suffixes = [wild(3, 24), busy_chain()], [".html", ".dot", ".mmd", ".json"]  # the page holds the svg
    code = (
        "import sys, json, types, hashlib;"
        "sys.modules['dnigraph'] = package = types.ModuleType('dnigraph');"
        f"package.__path__ = {dnigraph.__path__};"
        "from dnigraph.passes.draw import rendered;"  # without torch, which a drawing does not need
        "from dnigraph.passes.plan.plan import Plan;"
        "plans = map(Plan.from_json, json.load(sys.stdin));"
        f"print([hashlib.sha256(rendered(plan, s)).hexdigest() for plan in plans for s in {suffixes}])"
    )
    here = str([hashlib.sha256(rendered(plan, s)).hexdigest() for plan in plans for s in suffixes])

    for seed in ("1", "2"):  # sets and dicts of names change their order with it
        run = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([plan.to_json() for plan in plans]),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == here


def test_names_are_escaped_not_lost():
    name = strange().parts[0].name

    text = rendered(strange(), ".svg").decode()

    assert escape(name) in text and name not in text
    assert name in unescape(text)


def test_a_plan_with_a_name_of_a_hundred_thousand_letters_is_refused():
    plan = strange()
    part = dataclasses.replace(plan.parts[0], nodes=("a" * 100_000,))

    with pytest.raises(PlanError, match="a name has 100000 letters"):
        rendered(dataclasses.replace(plan, parts=(part, *plan.parts[1:])), ".svg")
