"""The command line on models of a file, a module and a library: what it prints, and what it says to bad input."""

import importlib.util
import json
import re
import shlex
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.models import ZOO
from torch import nn

import dnigraph as dg
from dnigraph.cli import main
from dnigraph.proof.check import Finding

ROOT = Path(__file__).parents[2]
NETS = """
import torch
from torch import nn

class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))

class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.Linear(8, 5))
        self.requires_grad_(False)

small = Small()

def bare():
    return Small()

def pair():
    return Small(), torch.randn(4, 6)

def triple():
    return Small(), (), {"input": torch.randn(4, 6)}

def by_name():
    return {"model": Small(), "example_args": (torch.randn(4, 6),)}

def frozen():
    return Frozen(), torch.randn(4, 6)

def embedded():
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 8), nn.Linear(8, 5))

def with_data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :5].argmax(1)
    return {"model": Small(), "data": [(x, y)], "loss": nn.functional.cross_entropy, "test": [(x, y)]}

def data_without_loss():
    return {"model": Small(), "data": [(torch.randn(4, 6), torch.zeros(4))]}

def broken():
    raise RuntimeError("the weights are gone")

def of_numbers():
    return 3, 4

number = 3
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder with models in `nets.py`; what modules are found and loaded is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets.py").write_text(NETS)
    yield tmp_path
    for name in ("nets", "_dnigraph_spec_nets", "_dnigraph_spec_needy"):
        sys.modules.pop(name, None)


def say(*words, code=0):
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


@pytest.mark.parametrize("name", ["pair", "triple", "by_name"])
def test_a_callable_may_bring_its_example(name):
    assert "Small: 2 parts" in say("plan", f"nets.py:{name}", "--cut", "1")


@pytest.mark.parametrize("spec", ["nets.py:bare", "nets.py:Small", "nets.py:small", "nets:bare"])
def test_a_function_a_class_and_a_model_take_the_inputs_of_the_command_line(spec):
    assert "float32[3,8]" in say("plan", spec, "--cut", "1", "--input", "3,6")


def test_an_input_may_have_a_dtype_and_a_name():
    assert "float32[3,5,6]" in say("plan", "nets.py:embedded", "--cut", "0", "--input", "3,5:int64")
    assert "float32[3,8]" in say("plan", "nets.py:bare", "--cut", "1", "--input", "input=3,6")


def test_bench_trains_on_the_data_that_the_callable_brings(home):
    words = ["--cut", "1", "--boundary", "dni", "--condition", "one_hot:5", "--steps", "10", "--out", "rows.jsonl"]

    told = say("bench", "nets.py:with_data", *words)

    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows][:3] == ["backprop", "dni", "silent"]
    assert all(row["real data"] and row["test loss"] > 0 and len(row["losses"]) == 10 for row in rows)
    assert "Small in 2 parts, 10 steps" in told and "ecoupling" in told


@pytest.mark.parametrize("options", [[], ["--condition", "one_hot:5"]])
def test_bench_without_data_takes_random_numbers_and_tells_nothing_of_losses(options):
    told = say("bench", "nets.py:pair", "--cut", "1", "--boundary", "auto", "--steps", "10", *options)

    assert "The data is random, so the losses say nothing" in told
    rows = CliRunner().invoke(main, ["bench", "nets.py:pair", "--cut", "1", "--steps", "10", "--json", *options])
    assert [row["real data"] for row in json.loads(rows.output)] == [False] * (7 if options else 5)


def test_bench_says_what_is_missing():
    assert 'gives "data" and no "loss"' in say("bench", "nets.py:data_without_loss", "--cut", "1", code=2)
    told = say("bench", "nets.py:pair", "--cut", "1", "--condition", "one_hot:7", code=1)
    assert "no dimension has the 7 classes" in told


def test_inspect_lists_each_place_as_the_library_does_and_suggests_cuts():
    told = json.loads(CliRunner().invoke(main, ["inspect", "nets.py:pair", "--json"]).output)
    found = dg.places(nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)]), torch.randn(4, 6))

    first = told["places"][0]
    assert [place["path"] for place in told["places"]] == ["0", "1", "2", "3"]  # the last layer ends the model
    assert (first["kind"], first["shape"], first["bytes"], first["tensors"]) == ("Linear", [4, 8], 4 * 8 * 4, 1)
    assert first["parameters"] == 6 * 8 + 8 and first["flops"] == 2 * 4 * 6 * 8
    assert told["suggested"][0]["cuts"] == ["1"] and "no more than 3 parts" in told["suggested"][1]["note"]
    assert [place.path for place in found] == ["0", "1"] and found[1].share == pytest.approx(2 / 3)


def test_inspect_prints_a_table_with_node_names_if_asked():
    table, nodes = say("inspect", "nets.py:pair"), say("inspect", "nets.py:pair", "--nodes")

    for words in ("Small: 4 places to cut", "Linear", "float32[4,8]", "128 bytes", "384 FLOP", "2 parts: 1"):
        assert words in table
    assert " node " in nodes and " node " not in table


def test_a_plan_is_printed_as_the_library_prints_it_and_read_back_from_its_json(home):
    (home / "plan.json").write_text(CliRunner().invoke(main, ["plan", "nets.py:pair", "--parts", "2", "--json"]).output)

    saved = dg.Plan.load(home / "plan.json")

    assert " ".join(re.sub("─", " ", str(saved)).split()) == say("plan", "nets.py:pair", "--parts", "2")


def test_a_plan_shows_heads_where_a_boundary_is_asked_for():
    told = say("plan", "nets.py:pair", "--cut", "1", "--boundary", "dni", "--condition", "one_hot:5")

    assert "dni" in told and "parameters in heads" in told
    assert "parameters in heads" not in say("plan", "nets.py:pair", "--cut", "1")


def test_a_drawing_is_written_where_it_is_asked_for(home):
    told = say("draw", "nets.py:pair", "out/graph.svg", "--parts", "3")

    assert ET.parse(home / "out" / "graph.svg").getroot().tag.endswith("svg")
    assert "Small in 3 parts is drawn in out/graph.svg" in told


def test_a_check_reports_what_it_compared():
    assert "the same function" in say("check", "nets.py:pair", "--cut", "1")
    report = json.loads(CliRunner().invoke(main, ["check", "nets.py:triple", "--cut", "1", "--json"]).output)
    assert report["right"] and {"outputs", "separation"} <= {finding["what"] for finding in report["findings"]}


def test_a_check_that_fails_says_so_and_ends_with_1(monkeypatch):
    bad = dg.Report("Small", (Finding("train", "outputs", False, "apart"),))

    def differs(*args, **kwargs):
        raise dg.CheckError(bad)

    monkeypatch.setattr("dnigraph.commands.looks.run_check", differs)

    told = say("check", "nets.py:pair", "--cut", "1", code=1)
    as_data = json.loads(CliRunner().invoke(main, ["check", "nets.py:pair", "--cut", "1", "--json"]).output)

    assert "NOT the same function" in told and "BAD outputs: apart" in told
    assert not as_data["right"] and as_data["findings"][0]["detail"] == "apart"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nets.py", "names no model; say package.module:callable, path/to/file.py:callable"),
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("no_such_package.nets:f", "there is no module 'no_such_package'"),
        ("nets.py:pear", "has no callable 'pear'; nearest: pair"),
        ("nets.py:zzzzzz", "has no callable 'zzzzzz'; there are Small"),
        ("nets.py:number", "is no callable but a int"),
        ("nets.py:of_numbers", "returns (int, int); return a model, (model, example_args)"),
        ("nets.py:bare", 'give --input "4,3,32,32" for each tensor, or let the callable return (model, example_args)'),
    ],
)
def test_a_model_that_cannot_be_had_is_a_usage_error_with_the_way_out(spec, words):
    assert words in say("inspect", spec, code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "4,x"], "'4,x' is no shape; say"),
        (["--input", "4,6:float23"], "no dtype 'float23'; nearest: float32"),
        (["--condition", "one_hot"], "'one_hot' is no condition; say one_hot:CLASSES"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options, words):
    assert words in say("plan", "nets.py:pair", "--cut", "1", *options, code=2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "nets.py:pair", "--cut", "layer9"], "cut 'layer9': the model has no such module, mark or node"),
        (["check", "nets.py:pair", "--cut", "4"], "which ends the model; cut one of its inputs"),
        (["plan", "nets.py:pair", "--parts", "9"], "no more than 3 parts are possible"),
        (["draw", "nets.py:pair", "graph.bmp", "--cut", "1"], "bmp"),
        (["plan", "nets.py:bare", "--cut", "1", "--input", "3,7"], "the model itself fails on the example"),
        (["inspect", "nets.py:broken"], "fails: RuntimeError: the weights are gone"),
    ],
)
def test_what_cannot_be_done_is_a_message_and_ends_with_1(words, told):
    assert told in say(*words, code=1)


def test_a_callable_that_fails_is_shown_with_its_line():
    told = say("plan", "nets.py:broken", code=1)

    line = 1 + NETS.splitlines().index('    raise RuntimeError("the weights are gone")')
    assert f"nets.py, line {line}: raise RuntimeError" in told


def test_a_model_in_which_nothing_learns_has_no_places():
    assert "Frozen: 0 places to cut" in say("inspect", "nets.py:frozen")


def test_a_module_whose_own_import_is_missing_is_an_error_in_it(home):
    (home / "needy.py").write_text("import no_such_library\n")

    assert "importing needy fails: ModuleNotFoundError: No module named 'no_such_library'" in say(
        "inspect", "needy:f", code=1
    )


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed_is_named_with_the_command(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)

    assert f"pip install {library}" in say("inspect", f"{library}:resnet18", code=2)


def test_models_of_timm_and_torchvision_are_made_by_name(monkeypatch):
    def small(size):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, 5))

    models = types.SimpleNamespace(list_models=lambda: ["small"], get_model=lambda name, **options: small(224))
    made = small(8)
    made.default_cfg = {"input_size": (3, 8, 8)}
    timm = types.SimpleNamespace(list_models=lambda: ["small"], create_model=lambda name: made)
    for name, module in (("timm", timm), ("torchvision", models), ("torchvision.models", models)):
        monkeypatch.setitem(sys.modules, name, module)

    assert "float32[2,4,6,6]" in say("inspect", "timm:small")
    assert "float32[2,4,222,222]" in say("inspect", "torchvision:small")
    assert "timm has no model 'smal'; nearest: small" in say("inspect", "timm:smal", code=2)


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("name", ["bert", "BertModel"])
def test_models_of_transformers_are_made_by_type_or_class(name, monkeypatch):
    import transformers

    from dnigraph.commands.model_specs import load

    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 99}
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 2, **sizes}
    make = transformers.BertConfig.__init__
    monkeypatch.setattr(transformers.BertConfig, "__init__", lambda self, **given: make(self, **tiny | given))

    loaded = load(f"transformers:{name}")

    assert type(loaded.model).__name__ == "BertModel" and "input_ids" in loaded.kwargs
    assert loaded.model.config.use_cache is False
    assert "nearest: bert" in say("inspect", "transformers:bertt", code=2)


def test_places_of_several_calls_and_of_a_value_that_goes_around():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.top = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            h = self.stem(x)
            h = h + self.block(h)
            return self.top(h + self.block(h))

    model, x = Residual(), torch.randn(4, 6)
    found = {place.path: place for place in dg.places(model, x)}

    assert found["stem"].tensors == 1 and found["block@1"].tensors == 2  # stem goes around block
    assert list(found) == ["stem", "block@1", "block@2"]
    for path, place in found.items():
        plan = dg.plan(model, path, x)
        crossings = [crossing for crossing in plan.crossings if crossing.gradient]
        assert (place.tensors, place.bytes) == (len(crossings), sum(crossing.bytes for crossing in crossings))


@pytest.mark.parametrize("name", ["chain", "resnet", "early_exit", "dense_with_many_readers", "two_towers"])
def test_suggested_cuts_give_the_parts_of_the_balance(name):
    model, args, _ = ZOO[name]()

    suggested = dg.places(model, args).suggested

    assert [suggestion.parts for suggestion in suggested] == [2, 4] and suggested[0].cuts
    for suggestion in suggested:
        if suggestion.cuts:
            plans = [dg.plan(model, cuts, args) for cuts in (list(suggestion.cuts), suggestion.parts)]
            assert len(plans[0].parts) == len(plans[1].parts)


def test_an_edge_is_a_cut(home):
    edges = [cut for s in dg.places(*ZOO["resnet"]()[:2]).suggested for cut in s.cuts if isinstance(cut, tuple)]
    cuts = [word for cut in edges for word in ("--cut", "->".join(cut))]

    assert edges and "ResNet: 4 parts" in say("plan", "kit.models:ResNet", *cuts, "--input", "4,2,6,6")


@pytest.mark.parametrize("rung", ["record", "export", "hooks"])
def test_every_rung_shows_places_that_can_be_cut(rung):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), torch.randn(4, 6)

    found = dg.places(model, x, capture=rung)

    assert found.capture == rung and found
    assert all(len(dg.plan(model, place.path, x, capture=rung).parts) == 2 for place in found)
    assert str(found).startswith("Sequential: ")


def test_every_help_shows_an_example():
    for command in ("inspect", "plan", "draw", "check", "bench"):
        assert f"Example: dnigraph {command} nets.py:" in say(command, "--help")


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages are not part of an installation")
def test_every_command_of_the_page_runs(home):
    page = (ROOT / "docs" / "command-line.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (home / "nets.py").write_text("\n".join(block for block in blocks if "\ndef " in block))
    commands = re.findall(r"^dnigraph (.*)$", "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)), re.MULTILINE)

    for command in commands:
        say(*shlex.split(command, comments=True))

    assert {command.split()[0] for command in commands} == {"inspect", "plan", "draw", "check", "bench"}
