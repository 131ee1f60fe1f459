"""One model of a registry, put through everything that a user would do with it, and compared with itself."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.passes.graph.pytrees import flatten, unflatten
from dnigraph.passes.sandbox.example import one_more_row, varied
from dnigraph.passes.sandbox.rng import seed_all
from dnigraph.passes.sandbox.snapshot import fresh_copies, untouched

Call = tuple[tuple[Any, ...], dict[str, Any]]
PARTS, SEED = 3, 0
TOLERANCE = 1e-4  # of the largest gradient: where values meet, gradients are added in another order


class Differs(AssertionError):
    """The decoupled model is not the model."""


class Unscored(Exception):
    """The model cannot be compared with itself."""


@dataclass
class Case:
    """One model and the verdicts on it; `row` has them as plain data."""

    build: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
    batchable: bool = True
    row: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All steps, each with its own verdict: "right", "refused: why", "WRONG: where", "error: what", or none."""
        warnings.simplefilter("ignore")
        seed_all(SEED)
        try:
            self.model, args, kwargs = self.build()
            self.model.train()
            self.call: Call = (args, kwargs)
            if not _same(self._plain(self.call), self._plain(self.call)):
                raise Unscored("two runs with the same seeds differ")
        except Exception as error:
            return {"status": "unscored", "why": _message(error)}
        if self._verdict("decouple", self._decouple) == "right":
            self._verdict("train", lambda: self._compare(self.call))
            self._verdict("eval", self._eval)
            for name, change in (("data", varied), ("batch", one_more_row), ("length", shorter)):
                self._verdict(name, lambda change=change: self._other(change))  # type: ignore[misc]
            self._verdict("state dict", self._state)
            self._verdict("step", self._step)
        self.row["status"], self.row["why"] = self._summary()
        return self.row

    def _verdict(self, name: str, step: Callable[[], Any]) -> str:
        started = time.perf_counter()
        try:
            verdict = "right" if step() is not False else "-"
        except (Differs, dg.CheckError) as error:
            verdict = f"WRONG: {_message(error)}"
        except dg.DniGraphError as error:
            verdict = f"refused: {_message(error)}"
        except Exception as error:
            verdict = f"error: {type(error).__name__}: {_message(error)}"
        self.row[name] = verdict
        self.row[f"{name}, s"] = round(time.perf_counter() - started, 3)
        return verdict

    def _summary(self) -> tuple[str, str]:
        """The worst verdict; a refusal is one that a user sees, at capture or at the call that does not fit."""
        verdicts = {k: v for k, v in self.row.items() if isinstance(v, str) and k in STEPS}
        for kind, status in (("WRONG", "wrong"), ("error", "error"), ("refused", "refused")):
            for step, verdict in verdicts.items():
                if verdict.startswith(kind):
                    return status, f"{step}: {verdict.partition(': ')[2]}"
        return "right", ""

    def _decouple(self) -> None:
        """With oracles, so that all that follows can be compared with the model itself, gradients included."""
        before = _facts(self.model)
        try:
            self.dm = self._cut(boundary="oracle")
        finally:
            if touched := [k for k, v in before.items() if not _same(v, _facts(self.model)[k])]:
                raise Differs(f"the model's {', '.join(touched)} changed")
        plan = self.dm.plan
        self.row |= {
            "rung": plan.capture,
            "nodes": sum(len(p.nodes) for p in plan.parts),
            "parts": len(plan.parts),
            "crossings": sum(c.gradient for c in plan.crossings),
        }

    def _cut(self, **choices: Any) -> dg.DecoupledModule:
        args, kwargs = self.call
        try:
            return dg.decouple(self.model, PARTS, args, kwargs, **choices)
        except dg.CutError:  # not so many places
            return dg.decouple(self.model, PARTS - 1, args, kwargs, **choices)

    def _eval(self) -> bool:
        with _mode(self.dm, self.model, False):
            if not self._runs(self.call):
                return False
            self._compare(self.call)
        return True

    def _other(self, change: Callable[[list[Any]], list[Any] | None]) -> bool:
        leaves, spec = flatten(self.call)
        changed = change(leaves) if self.batchable else None
        if changed is None:
            return False
        call = unflatten(changed, spec)
        if not self._runs(call):
            return False
        self._compare(call)
        return True

    def _runs(self, call: Call) -> bool:
        """Whether the model itself takes the call."""
        try:
            self._plain(call)
        except Exception:
            return False
        return True

    def _plain(self, call: Call) -> dict[str, Any]:
        return _run(self.model, self.model, call)

    def _compare(self, call: Call) -> None:
        expected, actual = self._plain(call), _run(self.dm, self.model, call)
        wrong = [k for k in expected if not (_near if k == "gradients" else _same)(expected[k], actual[k])]
        if wrong:
            raise Differs(f"other {', '.join(wrong)}")

    def _state(self) -> None:
        """A checkpoint of either loads into the other."""
        plain, ours = self.model.state_dict(), self.dm.state_dict()
        if not set(plain) <= set(ours):
            raise Differs("keys of the model are missing")
        kept = copy.deepcopy(ours)  # with the versions of its modules
        self.dm.load_state_dict(kept)
        for key in set(kept) - set(plain):
            del kept[key]
        self.dm.load_state_dict(kept)
        self.model.load_state_dict(kept)
        kinds = [_dense(v) if isinstance(v, Tensor) else v for v in plain.values()]
        again = self.dm.state_dict()
        if not _same(kinds, [_dense(again[k]) if isinstance(again[k], Tensor) else again[k] for k in plain]):
            raise Differs("a round trip changes values")

    def _step(self) -> None:
        """One step with heads in place of the oracles: they and the weights must move, and stay finite."""
        dm = self._cut(check=False)
        optimizer = torch.optim.Adam(dm.parameters(), 1e-3)
        before = {n: p.detach().clone() for n, p in dm.named_parameters()}
        heads = {id(p) for p in dm.head_parameters()}
        for _ in range(2):
            seed_all(1)
            _scalar(dm(*_copied(self.call)[0], **_copied(self.call)[1])).backward()
            optimizer.step()
            optimizer.zero_grad()
        # Another path through the model's code adds heads, which had no value before.
        named = [(n, p) for n, p in dm.named_parameters() if n in before]
        moved = [n for n, p in named if not _same(p, before[n])]
        if any(not bool(p.isfinite().all()) for p in dm.parameters()):
            raise Differs("a weight is not finite after a step")
        if heads and not any(id(p) in heads for n, p in dm.named_parameters() if n in set(moved)):
            raise Differs("no head moved")
        if not any(id(p) not in heads for n, p in dm.named_parameters() if n in set(moved)):
            raise Differs("no weight moved")


STEPS = ("decouple", "train", "eval", "data", "batch", "length", "state dict", "step")


def shorter(leaves: list[Any]) -> list[Any] | None:
    """The same inputs with the sequence one shorter, where there is one: the second dimension of whole numbers."""
    tensors = [v for v in leaves if isinstance(v, Tensor)]
    tokens = next((v for v in tensors if v.dim() == 2 and not v.is_floating_point() and v.shape[1] > 2), None)
    if tokens is None:
        return None
    length = tokens.shape[1]
    return [
        v[:, :-1].contiguous() if isinstance(v, Tensor) and v.dim() > 1 and v.shape[1] == length else v for v in leaves
    ]


@contextmanager
def _mode(dm: dg.DecoupledModule, model: nn.Module, training: bool) -> Iterator[None]:
    flags = [(m, m.training) for m in model.modules()]
    dm.train(training)
    try:
        yield
    finally:
        dm.train(not training)
        for module, flag in flags:
            module.training = flag


def _copied(call: Call) -> Call:
    leaves, spec = flatten(call)
    args, kwargs = unflatten(fresh_copies(leaves), spec)
    return args, kwargs


def _run(run: nn.Module, model: nn.Module, call: Call) -> dict[str, Any]:
    """Results, gradients, buffers and random state of one run; the model's state is put back."""
    args, kwargs = _copied(call)
    with untouched(model):
        seed_all(3)
        for p in model.parameters():
            p.grad = None
        leaves, spec = flatten(run(*args, **kwargs))
        random = torch.get_rng_state()
        if any(isinstance(v, Tensor) and v.requires_grad for v in leaves):
            _scalar(leaves).backward()
        gradients = {n: None if p.grad is None else _dense(p.grad) for n, p in model.named_parameters()}
        buffers = {k: _dense(v) for k, v in model.named_buffers()}
    results = [_dense(v.detach()) if isinstance(v, Tensor) else v for v in leaves]
    return {
        "results": results,
        "structure": str(spec),
        "gradients": gradients,
        "buffers": buffers,
        "random numbers": random,
    }


def _dense(value: Tensor) -> Tensor:
    """A copy that can be compared."""
    return value.clone() if value.layout == torch.strided else value.to_dense()


def _scalar(results: Any) -> Tensor:
    """A number that hears of every result, with weights of its own for each element."""
    total = torch.zeros(())
    for value in flatten(results)[0]:
        if isinstance(value, Tensor) and value.requires_grad:
            flat = (torch.view_as_real(value) if value.is_complex() else value).flatten().float()
            total = total + (flat * torch.linspace(0.5, 1.5, len(flat))).sum() / max(len(flat), 1)
    return total


def _facts(model: nn.Module) -> dict[str, Any]:
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [_dense(b) for b in model.buffers()],
        "gradients": [p.grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [[*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks] for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random numbers": torch.get_rng_state(),
    }


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        alike = x.shape == y.shape and x.dtype == y.dtype
        return alike and (torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all()))
    if isinstance(x, dict):
        return isinstance(y, dict) and list(x) == list(y) and all(_same(v, y[k]) for k, v in x.items())
    if isinstance(x, list | tuple):
        return type(x) is type(y) and len(x) == len(y) and all(map(_same, x, y))
    return type(x) is type(y) and bool(x is y or x == y or x != x)


def _near(x: dict[str, Tensor | None], y: dict[str, Tensor | None]) -> bool:
    largest = max((float(g.abs().nan_to_num(0).max()) for g in x.values() if g is not None and g.numel()), default=0.0)
    for name, g in x.items():
        other = y[name]
        if g is None or other is None:
            zero = g if other is None else other
            if zero is not None and float(zero.abs().max()) > TOLERANCE * largest:
                return False
        elif g.numel():
            allowed = TOLERANCE * max(float(g.abs().nan_to_num(0).max()), 1e-2 * largest)
            if not torch.allclose(g, other, rtol=0, atol=allowed, equal_nan=True):
                return False
    return True


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
