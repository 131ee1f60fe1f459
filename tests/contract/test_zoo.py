"""Models that no one here wrote, and the benchmark that judges such models."""

import itertools
import os
import random
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

pytest.importorskip("benchmarks.zoo", reason="the benchmarks are only in a checkout")

from kit.library_models import REG

from benchmarks import rows
from benchmarks.zoo import main
from benchmarks.zoo_case import STEPS, Case

HERE = Path(__file__)


@pytest.mark.parametrize("name", REG)
def test_a_model_of_a_library_stays_itself(name):
    row = Case(REG[name]["build"], REG[name]["batchable"]).run()

    assert row["status"] == "right", row["why"]
    assert row["parts"] >= 2
    assert row["rung"] == ("hooks" if "numpy" in name else "record")
    assert set(STEPS) <= set(row)


# ---- the judge itself must see what is wrong


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


CALLS = itertools.count(1)  # which nobody can put back


class Counting(nn.Module):
    """Its results grow with every call that the process makes."""

    def __init__(self):
        super().__init__()
        self.body = Plain()

    def forward(self, x):
        return self.body(x) * next(CALLS)


REG_OF_ILLS = {}


def ill(build):
    REG_OF_ILLS[build.__name__] = {"lib": "ills", "build": build}
    return build


def call(model):
    return model, (torch.randn(3, 4),), {}


@ill
def healthy():
    return call(Plain())


@ill
def dies():
    os._exit(3)


@ill
def hangs():
    time.sleep(60)


@ill
def never_twice_the_same():
    return call(Counting())


@ill
def too_small():
    return call(nn.Linear(4, 4))


@ill
def cannot_be_built():
    raise LookupError("no such weights")


@pytest.fixture
def judged(tmp_path, monkeypatch):
    registry = tmp_path / "ills.py"
    registry.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE.parent)!r})\nfrom test_zoo import REG_OF_ILLS as REG\n"
    )
    out = tmp_path / "out.jsonl"

    def judge(*more):
        threads = torch.get_num_threads()
        result = CliRunner().invoke(main, [str(registry), "--out", str(out), "--limit", "8", *more])
        torch.set_num_threads(threads)
        assert result.exit_code == 0, result.output
        return {row["model"]: row for row in rows.read(out)}, result.output

    return judge


def test_every_ill_has_its_name(judged):
    judgements, said = judged("--only", "*")

    assert {name: row["status"] for name, row in judgements.items()} == {
        "healthy": "right",
        "dies": "crashed",
        "hangs": "time out",
        "never_twice_the_same": "unscored",
        "too_small": "refused",
        "cannot_be_built": "unscored",
    }
    assert judgements["dies"]["why"] == "exit code 3"
    assert "no such weights" in judgements["cannot_be_built"]["why"]
    assert "decouple into three parts" in said


def test_a_run_goes_on_where_it_stopped(judged):
    first, _ = judged("--only", "healthy")

    second, said = judged("--only", "healthy", "--only", "too_small", "--resume")

    assert second["healthy"] == first["healthy"]
    assert set(second) == {"healthy", "too_small"}
    assert said.count("right") < 4


def test_a_decoupled_model_that_computes_something_else_is_wrong(monkeypatch):
    def spoilt(*args, **options):
        dm = right(*args, **options)
        call = dm._call
        dm.__dict__["_call"] = lambda *a, **k: call(*a, **k) * (1 + 1e-6)
        return dm

    right = dg_decouple()
    monkeypatch.setattr("benchmarks.zoo_case.dg.decouple", spoilt)

    row = Case(healthy).run()

    assert row["status"] == "wrong"
    assert row["why"].startswith("train: other results")


def test_what_decouple_leaves_on_the_model_is_wrong(monkeypatch):
    def littering(model, *args, **options):
        model[0].register_forward_hook(lambda *_: None)
        return right(model, *args, **options)

    right = dg_decouple()
    monkeypatch.setattr("benchmarks.zoo_case.dg.decouple", littering)

    row = Case(healthy).run()

    assert row["why"] == "decouple: the model's hooks changed"


def test_heads_that_do_not_learn_are_wrong(monkeypatch):
    def frozen(*args, **options):
        dm = right(*args, **options)
        for p in dm.head_parameters():
            p.requires_grad_(False)
        return dm

    right = dg_decouple()
    monkeypatch.setattr("benchmarks.zoo_case.dg.decouple", frozen)

    assert Case(healthy).run()["why"] == "step: no head moved"


def test_a_moody_model_is_scored_under_its_seeds():
    class Moody(Plain):
        def forward(self, x):
            return super().forward(x) * (2 if random.random() < 0.5 else 1)

    row = Case(lambda: call(Moody())).run()

    assert (row["status"], row["rung"]) == ("right", "hooks")


def dg_decouple():
    import dnigraph

    return dnigraph.decouple
