"""The house: which room may import which, that no two files know each other, and that names do not mislead."""

import ast
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "passes").is_dir(), reason="not in a checkout")

# From the ground up. A room may import those before it, and rooms on one line do not import each other.
FLOORS = (
    ("dnigraph.passes.errors",),
    ("dnigraph.passes.graph",),
    ("dnigraph.passes.sandbox", "dnigraph.passes.plan"),
    ("dnigraph.passes.capture", "dnigraph.passes.cuts", "dnigraph.passes.parts", "dnigraph.passes.draw"),
    ("dnigraph.heads",),
    ("dnigraph.boundaries",),
    ("dnigraph.decoupled",),
    ("dnigraph.engine",),
    ("dnigraph.proof", "dnigraph.runners", "dnigraph.dynamo"),
    ("dnigraph.network",),
    ("dnigraph.recurrent",),
    ("dnigraph.decouple", "dnigraph.draw"),
    ("dnigraph.bench",),
    ("dnigraph.demo",),
    ("dnigraph.commands",),
    ("dnigraph",),
    ("dnigraph.cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LOOSE = 7  # files that may lie in dnigraph/ itself: what a newcomer takes in at a glance


@cache
def files():
    """Each file of the library by the name of its module."""
    found = {}
    for top, name in ((ROOT / "dnigraph", "dnigraph"), (ROOT / "passes", "dnigraph.passes")):
        for file in top.rglob("*.py"):
            parts = file.relative_to(top).with_suffix("").parts
            if top.name == "dnigraph" and parts[0] == "passes":
                continue  # the link to the other top
            found[".".join((name, *parts)).removesuffix(".__init__")] = file
    return found


def imports(module, file, known):
    """The modules of the library that a file imports, inside functions and for type checkers too."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


@cache
def arrows():
    """Pairs of files of which the first imports the second. What a room's `__init__` hands on is not counted."""
    known = files()
    return {
        (module, target)
        for module, file in known.items()
        if file.name != "__init__.py" or module == "dnigraph"
        for target in imports(module, file, known)
        if target in known and target != module
    }


def room_of(module):
    return next((r for r in sorted(FLOOR_OF, key=len, reverse=True) if (module + ".").startswith(r + ".")), module)


def test_no_two_files_know_each_other():
    graph = nx.DiGraph((a, b) for a, b in arrows() if files()[b].name != "__init__.py")

    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]

    assert circles == []


def test_imports_point_down_from_room_to_room():
    pairs = {(room_of(a), room_of(b)) for a, b in arrows()}

    wrong = sorted(f"{a} imports {b}" for a, b in pairs if a != b and FLOOR_OF[a] <= FLOOR_OF[b])

    assert wrong == []


def test_the_folders_inside_a_room_do_not_import_each_other_both_ways():
    folders = defaultdict(set)
    for a, b in arrows():
        one, other = a.rpartition(".")[0], b.rpartition(".")[0]
        if room_of(a) == room_of(b) and one != other:
            folders[one].add(other)

    both = sorted((a, b) for a, reached in folders.items() for b in reached if a in folders.get(b, ()) and a < b)

    assert both == []


def test_few_files_lie_loose():
    assert len(list((ROOT / "dnigraph").glob("*.py"))) <= LOOSE
    assert {f.name for f in (ROOT / "passes").glob("*.py")} == {"__init__.py", "errors.py"}


def test_no_file_has_the_name_of_a_folder_beside_it():
    twins = [f for f in files().values() if (f.parent / f.stem).is_dir() and f.name != "__init__.py"]

    assert twins == []


def test_no_two_files_of_neighbouring_rooms_have_one_name():
    """Rooms are neighbours where they lie in one folder."""
    names = defaultdict(Counter)
    for module, file in files().items():
        if file.name != "__init__.py" and module.count(".") >= 2:
            names[file.parent.parent][file.name] += 1

    assert {str(top): name for top, found in names.items() for name, times in found.items() if times > 1} == {}


def test_tests_mirror_the_folders():
    """Each folder of tests is called as a folder of the library, or is one of the four that belong to none."""
    own = {"kit", "contract", "project", "benchmarks"}
    known = {tuple(m.split(".")[1:]) for m in files()}
    folders = {f.parent.relative_to(ROOT / "tests").parts for f in (ROOT / "tests").rglob("test_*.py")}

    assert [f for f in sorted(folders) if f and f[0] not in own and not any(k[: len(f)] == f for k in known)] == []


def test_no_test_imports_a_test():
    texts = {f: f.read_text() for f in (ROOT / "tests").rglob("*.py")}
    stems = {f.stem for f in texts if f.stem.startswith("test_")}

    imported = {
        (f.name, name)
        for f, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
        if name in stems
    }

    assert imported == set()
