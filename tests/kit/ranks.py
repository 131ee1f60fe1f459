"""Processes that stand for ranks, forked from one that has imported torch, and what they do in the tests."""

import contextlib
import copy
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
import traceback
import warnings
import zlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import dnigraph as dg
from dnigraph.runners.post import HEADERS
from dnigraph.runners.wire import FIELDS
from kit.models import BOUNDARIES, CONDITION, ZOO, labels, loss_of

TIED = {"a_module_called_twice", "tied_weights_and_a_mask_for_all"}  # several parts have one weight
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class End:
    """How a rank ended: what it returned, or the error that it raised."""

    code: int | None
    value: Any = None
    error: str | None = None  # its type and its words


def _rank(rank, world, port, host, connection, function, args):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.TCPStore("127.0.0.1", port, None if not host else world, host and rank == 0, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        connection.send((function(rank, *args), None))
    except BaseException as error:
        if os.environ.get("SHOW"):
            traceback.print_exc()
        connection.send((None, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None


@functools.cache
def _start():
    """Start the process that ranks are forked from. It has the path of this one from the environment only."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    PROCESSES.set_forkserver_preload(["kit.ranks", "kit.warm"])
    multiprocessing.forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


def run(world, function, *args, host=False, doomed=None, seconds=100):
    """Call function(rank, *args) on so many ranks. Returns an `End` for each.

    Args:
        host: rank 0 holds the store; else this process does, as torchrun would.
        doomed: a rank that is killed once all others have ended.
        seconds: after which ranks that are left are killed.
    """
    _start()
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
    port = store.port
    if host:
        del store
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(world)]
    processes = [
        PROCESSES.Process(target=_rank, args=(r, world, port, host, pipes[r][1], function, args), daemon=True)
        for r in range(world)
    ]
    for process in processes:
        process.start()
    for _, end in pipes:
        end.close()
    until = time.monotonic() + seconds
    ends = {}
    for r in sorted(range(world), key=lambda r: r == doomed):
        limit = 0 if r == doomed else max(until - time.monotonic(), 0)
        ends[r] = _end_of(processes[r], pipes[r][0], limit)
    return [ends[r] for r in range(world)]


def _end_of(process, pipe, seconds):
    value = error = None
    with contextlib.suppress(EOFError):
        if pipe.poll(seconds):
            value, error = pipe.recv()
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return End(process.exitcode, value, error)


# ---- what ranks do


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def made(name, boundary, **options):
    """A model of the zoo without dropout, since each process has random numbers of its own: (dm, example)."""
    torch.manual_seed(0)
    model, args, cuts = ZOO[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return dg.decouple(model, cuts, args, condition=CONDITION, boundary=boundary, check=False, **options), args


def batches(args, steps, first=0):
    """Batches of the example, not all of one size."""
    for i in range(first, first + steps):
        rows = torch.randperm(len(args[0]), generator=torch.Generator().manual_seed(i))[: len(args[0]) - i % 2]
        yield [a[rows] for a in args], labels(len(rows))


def beside_local(rank, cases):
    """Train each model on all ranks, and by `Local` on each of them. Returns what is apart, and how much was seen.

    Args:
        cases: tuples of a model's name, a boundary's name, how late, and the ranks of the parts.
    """
    apart, seen = [], 0
    for name, boundary, late, ranks in cases:
        dm, args = made(name, BOUNDARIES[boundary])
        other = copy.deepcopy(dm)
        clip = None if name in TIED else 0.5
        local = dg.Local(other, loss=loss_of, optimizer=adam, late=late, clip=clip)
        with dg.Distributed(dm, loss=loss_of, optimizer=adam, late=late, clip=clip, ranks=ranks) as run:
            for batch, y in batches(args, 5):
                one, two = local.step(*batch, target=y), run.step(*batch, target=y)
                apart += [
                    (name, boundary, late, f"metrics of {n}") for n, m in two.metrics.items() if m != one.metrics[n]
                ]
                if two.loss is not None and not torch.equal(one.loss, two.loss):
                    apart.append((name, boundary, late, "loss"))
            local.settle()
            run.settle()
            held = [(n, p) for n, p in dm.original.named_parameters() if run._owners.has(rank, p)]
            apart += [
                (name, boundary, late, f"its copy of {n}")
                for n, p in held
                if not torch.equal(p, other.original.get_parameter(n))
            ]
            run.gather()
            state = other.state_dict()
            for key, value in (dm.state_dict() if rank == 0 else run.own_weights()).items():
                seen += 1
                if isinstance(value, torch.Tensor) and not torch.equal(value, state[key]):
                    apart.append((name, boundary, late, key))
    return apart, seen


def chain(late=0, boundary="dni", optimizer=adam, **options):
    """A run of three parts in a chain: (run, example)."""
    dm, args = made("chain", boundary)
    return dg.Distributed(dm, loss=loss_of, optimizer=optimizer, late=late, **options), args


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def digests(state):
    """A number for each entry of a state dict, which goes through a pipe."""
    return {key: zlib.crc32(value.numpy().tobytes()) for key, value in state.items() if isinstance(value, torch.Tensor)}


def saving(rank, boundary, start, file, name="chain"):
    """Train three steps, or go on from a file; save; train three more. Returns what this rank has of the model."""
    dm, args = made(name, BOUNDARIES[boundary])
    run = dg.Distributed(dm, loss=loss_of, optimizer=adam, scheduler=halved)
    with run:
        if start is None:
            for batch, y in batches(args, 3):
                run.step(*batch, target=y)
        else:
            run.load(start)
        if file is not None:
            run.save(file)
        stepped = {p for name, group in run.updates.groups.items() if name in run.ranks for p in group.optimizer.state}
        assert run.steps == 3 and sorted(run.ranks.values())[-1] > 0
        assert stepped == {p for p in dm.original.parameters() if run._owners.has(rank, p)}
        for batch, y in batches(args, 3, first=3):
            run.step(*batch, target=y)
        return digests(run.own_weights())


def with_a_gradient_that_is_not_finite(rank, late):
    """One gradient, of a weight that is not shared, is not finite in one step. Returns what is apart from `Local`."""
    (dm, args), steps = made("tied_weights_and_a_mask_for_all", "oracle"), []
    other = copy.deepcopy(dm)
    for one in (dm, other):
        spoilt = list(one.original.parameters())[-1]
        spoilt.register_hook(lambda g: g * float("nan") if len(steps) == 2 else g)
    local = dg.Local(other, loss=loss_of, optimizer=adam, late=late)
    run = dg.Distributed(dm, loss=loss_of, optimizer=adam, late=late, ranks={"part_0": 0, "part_1": 1, "part_2": 1})
    with run:
        for batch, y in batches(args, 6):
            local.step(*batch, target=y)
            run.step(*batch, target=y)
            steps.append(None)
        local.settle()
        run.settle()
        pairs = list(zip(dm.original.named_parameters(), other.original.parameters(), strict=True))
        held = [(n, p, q) for (n, p), q in pairs if run._owners.has(rank, p)]
        return [n for n, p, q in held if not torch.equal(p, q)], len(held)


def refused_shares(rank, name, options):
    dm, _ = made(name, "dni")
    return _words(lambda: dg.Distributed(dm, loss=loss_of, optimizer=adam, **options))


def _words(call, *args):
    try:
        call(*args)
    except dg.DniGraphError as error:
        return str(error)
    return None


def refused_files(rank, folder):
    run, args = chain(late=1)
    with run:
        for batch, y in batches(args, 2):
            run.step(*batch, target=y)
        found = [_words(run.save, folder / "run.pt")]
        run.settle()
        before = digests(run.own_weights())
        found.append(_words(run.save, folder / "nowhere" / "run.pt"))
        found += [_words(run.load, folder / "run.pt"), _words(run.load, folder / "other.pt")]
        assert digests(run.own_weights()) == before
        for batch, y in batches(args, 2):
            run.step(*batch, target=y)
        return found


def of_another_mind(rank, unlike):
    options = {}
    if unlike == "late":
        options["late"] = rank
    elif unlike == "optimizer":
        options["optimizer"] = adam if rank else lambda parameters: torch.optim.SGD(parameters, 0.1)
    dm, _ = made("chain" if rank and unlike == "cuts" else "regions_and_a_function_of_its_own", "dni")
    if unlike != "cuts":
        dm, _ = made("chain", "dni")
    return _words(lambda: dg.Distributed(dm, loss=loss_of, **{"optimizer": adam, **options}))


def doing_another_thing(rank, unlike):
    def loss(output, target):
        if unlike == "loss" and run.steps == 2:
            raise ZeroDivisionError("of the user's")
        return loss_of(output, target)

    dm, args = made("chain", "dni")
    run = dg.Distributed(dm, loss=loss, optimizer=adam, patience=3.0)
    with run:
        for i, (batch, y) in enumerate(batches(args, 5)):
            if i == 2 and rank == 0:
                batch = [b + 1 for b in batch] if unlike == "inputs" else batch
                y = (y + 1) % 5 if unlike == "labels" else y
                if unlike == "type":
                    _double(run)
            try:
                if i == 2 and rank == 0 and unlike == "calls":
                    return _words(run.gather)
                run.step(*batch, target=y)
            except (dg.DistributedError, ZeroDivisionError) as error:
                return f"{type(error).__name__}: {error}"
    return None


def _double(run):
    """Let the first part send numbers of another type."""
    (actor,) = run.net.running.actors.values()
    forward = actor.agent.module.forward
    actor.agent.module.forward = lambda **values: {k: v.double() for k, v in forward(**values).items()}


def with_fault(rank, fault, who, late=0):
    """Train until one rank has a fault. Returns what the others are told of it."""
    run, args = chain(late)
    with run:
        for i, (batch, y) in enumerate(batches(args, 10_000)):
            if i == 5 and rank == who:
                FAULTS[fault](run)
            try:
                run.step(*batch, target=y)
            except dg.DistributedError as error:
                return str(error)
    return None


def _raise(run):
    raise ValueError("a fault of the user's")


def _babble(run):
    """Send a header that is none."""
    peer = next(iter(run.post.peers))
    run.post.group.send([torch.full((FIELDS,), 7)], peer, HEADERS).wait()
    time.sleep(60)


FAULTS = {
    "killed": lambda run: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda run: os.kill(os.getpid(), signal.SIGSTOP),
    "terminated": lambda run: os.kill(os.getpid(), signal.SIGTERM),
    "left": lambda run: os._exit(0),
    "raises": _raise,
    "closes": lambda run: run.close(),
    "babbles": _babble,
}
