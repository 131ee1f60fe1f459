"""Files that are no checkpoints, of every runner; and what a process that was killed leaves beside one."""

import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg
from dnigraph.runners.checkpoint import FORMAT, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def local():
    torch.manual_seed(0)
    dm = dg.decouple(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "0", (torch.ones(2, 4),))
    run = dg.Local(dm, loss=F.mse_loss, optimizer=sgd)
    run.step(torch.ones(2, 4), target=torch.ones(2, 2))
    return run


def network():
    torch.manual_seed(0)
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(4, 4)).add("b", nn.Linear(4, 2), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=1)
    net.tick(torch.ones(2, 4), torch.ones(2, 2))
    return net


def recurrent():
    torch.manual_seed(0)
    rnn = dg.Recurrent(nn.GRU(4, 2), horizon=2, loss=F.mse_loss, optimizer=sgd)
    rnn.step(torch.ones(2, 3, 4), torch.ones(2, 3, 2))
    return rnn


RUNNERS = {"recurrent": recurrent, "network": network, "updates": local}


def weights(run):
    owner = run.dm if isinstance(run, dg.Local) else run
    return [p.detach().clone() for p in owner.parameters()]


def repacked(file, compression):
    found = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(found, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return found.getvalue()


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"epoch 3, loss 0.4\n", "no archive of the kind that torch.save writes"),
        (bytes(range(256)) * 9, "no archive"),
        (b"PK\x03\x04 and no more", "no archive"),
        (b"\x80\x02}q\x00.", "no archive"),
    ],
    ids=["empty", "text", "bytes", "cut off", "a bare pickle"],
)
def test_a_file_of_another_kind_is_refused_by_name(kind, content, words, tmp_path):
    file = tmp_path / "run.pt"
    file.write_bytes(content)

    with pytest.raises(dg.CheckpointError, match=words) as caught:
        RUNNERS[kind]().load(file)

    assert str(file) in str(caught.value)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_missing_file_and_a_folder_are_refused_with_what_is_there(kind, tmp_path):
    run = RUNNERS[kind]()
    run.save(tmp_path / "run_200.pt")

    with pytest.raises(dg.CheckpointError, match=r"run_20\.pt does not exist; nearest: run_200\.pt"):
        run.load(tmp_path / "run_20.pt")
    with pytest.raises(dg.CheckpointError, match=r"is a folder.*run_200\.pt"):
        run.load(tmp_path)
    with pytest.raises(dg.CheckpointError, match="there is no folder"):
        run.load(tmp_path / "other" / "run.pt")
    with pytest.raises(dg.CheckpointError, match="is a folder: name a file in it"):
        run.save(tmp_path)
    with pytest.raises(dg.CheckpointError, match="make it first"):
        run.save(tmp_path / "other" / "run.pt")


@pytest.mark.parametrize("path", [None, 3, "", ["a.pt"], "a\0b"])
@pytest.mark.parametrize("kind", RUNNERS)
def test_a_path_that_is_none_is_refused(kind, path):
    run = RUNNERS[kind]()

    for use in (run.save, run.load):
        with pytest.raises(dg.CheckpointError, match="no path of a checkpoint"):
            use(path)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_file_of_another_runner_is_refused_by_its_name(kind, tmp_path):
    for other, make in RUNNERS.items():
        make().save(tmp_path / "run.pt")
        if other != kind:
            name = {"recurrent": "Recurrent", "network": "Network", "updates": "Local"}[other]
            with pytest.raises(dg.CheckpointError, match=f"it is one of dg.{name}"):
                RUNNERS[kind]().load(tmp_path / "run.pt")


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("state", [[1, 2], {"weights": torch.ones(2)}, torch.ones(3)], ids=["list", "dict", "tensor"])
def test_what_somebody_else_saved_is_refused(kind, state, tmp_path):
    torch.save(state, tmp_path / "run.pt")

    with pytest.raises(dg.CheckpointError, match=r"it holds a (list|dict|Tensor)"):
        RUNNERS[kind]().load(tmp_path / "run.pt")


def changed(state, path, value):
    *above, last = path
    for key in above:
        state = state[key]
    if value is DROPPED:
        del state[last]
    else:
        state[last] = value


DROPPED = object()
HARMED = [
    ("recurrent", ("random",), DROPPED),
    ("recurrent", ("random", "python"), (3, (1, 2), None)),
    ("recurrent", ("format",), 99),
    ("recurrent", ("recurrent",), 5),
    ("recurrent", ("recurrent", "modules"), DROPPED),
    ("recurrent", ("recurrent", "steps"), "abc"),
    ("recurrent", ("recurrent", "steps"), -5),
    ("recurrent", ("recurrent", "place"), {"leaves": 3}),
    ("recurrent", ("recurrent", "groups", "heads", "optimizer"), {}),
    ("recurrent", ("recurrent", "groups", "heads", "gradients"), []),
    ("network", ("random", "torch"), torch.zeros(3)),
    ("network", ("network",), {}),
    ("network", ("network", "actors", "b"), DROPPED),
    ("network", ("network", "chances", "b"), torch.zeros(2)),
    ("network", ("network", "chances"), DROPPED),
    ("network", ("network", "groups", "b"), DROPPED),
    ("network", ("network", "groups", "b"), {"state": {}, "param_groups": []}),
    ("network", ("network", "actors", "b", "inboxes"), []),
    ("network", ("network", "modules", "b"), DROPPED),
    ("network", ("network", "ticks"), "many"),
    ("network", ("network", "structure"), None),
]


@pytest.mark.parametrize(("kind", "path", "value"), HARMED, ids=[".".join(entry[1]) for entry in HARMED])
def test_a_file_that_was_tampered_with_is_refused_and_changes_nothing(kind, path, value, tmp_path):
    run = RUNNERS[kind]()
    run.save(tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    changed(state, path, value)
    torch.save(state, tmp_path / "run.pt")
    step = (torch.ones(2, 3, 4), torch.ones(2, 3, 2)) if kind == "recurrent" else (torch.ones(2, 4), torch.ones(2, 2))
    twin = RUNNERS[kind]()
    for one in (run, twin):
        (one.step if kind == "recurrent" else one.tick)(*step)
    before = torch.get_rng_state()

    with pytest.raises(dg.DniGraphError) as caught:
        run.load(tmp_path / "run.pt")

    assert "the file" in str(caught.value) or "run.pt" in str(caught.value) or "its" in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)
    for one in (run, twin):
        (one.step if kind == "recurrent" else one.tick)(*step)
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(twin), strict=True))


def test_a_file_that_would_inflate_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "run.pt"
    save_checkpoint(file, {"network": {"zeros": torch.zeros(4_000_000)}})
    file.write_bytes(repacked(file, zipfile.ZIP_DEFLATED))

    with pytest.raises(dg.CheckpointError, match=r"inflates from \d+ to 16\d+ bytes"):
        load_checkpoint(file, {"network"})


@pytest.mark.parametrize("size", [(2**30,), (2**15, 2**14), (4, 2**29, 1)], ids=str)
def test_a_tensor_that_repeats_a_few_numbers_a_billion_times_is_refused(size, tmp_path):
    save_checkpoint(tmp_path / "run.pt", {"network": {"modules": [torch.zeros(1).expand(size)]}})

    with pytest.raises(dg.CheckpointError, match="repeat what is stored"):
        load_checkpoint(tmp_path / "run.pt", {"network"})


def test_a_mask_that_is_repeated_over_a_batch_is_no_such_tensor(tmp_path):
    save_checkpoint(tmp_path / "run.pt", {"network": torch.ones(50, 1, dtype=torch.bool).expand(50, 64)})

    assert load_checkpoint(tmp_path / "run.pt", {"network"})["network"].all()


KILLED = """
import os, signal, sys, torch
from dnigraph.runners.checkpoint import save_checkpoint
class Last:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
save_checkpoint(sys.argv[1], {"network": [torch.zeros(9), Last()]})
"""


def test_what_a_process_that_was_killed_left_is_removed_by_the_next_save(tmp_path):
    file, other = tmp_path / "run.pt", tmp_path / "run.pt.part"
    other.write_text("somebody else's")
    save_checkpoint(file, {"network": 1})
    here = {**os.environ, "PYTHONPATH": str(Path(dg.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], env=here, check=False)
    left = set(tmp_path.glob("*.part")) - {other}
    for part in left:  # where a kill falls into the writing of tensors, it has begun
        part.write_bytes(b"PK and some more")

    save_checkpoint(file, {"network": 2})

    assert killed.returncode == -signal.SIGKILL
    assert len(left) == 1
    assert sorted(tmp_path.iterdir()) == [file, other]
    assert load_checkpoint(file, {"network"})["network"] == 2


def test_what_another_process_is_just_writing_stays(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    part = tmp_path / "run.ptabcd_123.part"
    part.write_bytes(b"half")
    with part.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save_checkpoint(tmp_path / "run.pt", {"network": 1})
        assert part.exists()

    save_checkpoint(tmp_path / "run.pt", {"network": 1})
    assert not part.exists()


def test_a_failed_save_leaves_the_old_file_alone(tmp_path):
    save_checkpoint(tmp_path / "run.pt", {"network": 1})

    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "run.pt", {"network": lambda: 0})

    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    assert load_checkpoint(tmp_path / "run.pt", {"network"})["format"] == FORMAT


def replaying(size=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    dm = dg.decouple(model, "0", (torch.ones(2, 4),), boundary=dg.dni(replay=size))
    return dg.Local(dm, loss=F.mse_loss, optimizer=sgd)


def steps(run, rows):
    for n in rows:
        run.step(torch.arange(4.0 * n).view(n, 4), target=torch.ones(n, 2))


@pytest.mark.parametrize(("before", "other"), [((2, 3), ()), ((2, 3, 2, 2), (3,)), ((), (2, 2)), ((5,), (2, 3, 4))])
def test_a_run_takes_up_the_batches_that_heads_remember_however_many_it_has_itself(before, other, tmp_path):
    run, fresh = replaying(), replaying()
    steps(run, before)
    steps(fresh, other)
    run.save(tmp_path / "run")

    fresh.load(tmp_path / "run")
    for one in (run, fresh):
        steps(one, (2, 4))

    here, there = run.dm.state_dict(), fresh.dm.state_dict()
    assert here.keys() == there.keys() and len(here) > 10
    assert all(torch.equal(value, there[key]) for key, value in here.items() if isinstance(value, torch.Tensor))


def test_batches_that_no_head_of_this_run_could_remember_are_a_misfit(tmp_path):
    run, fresh = replaying(), replaying()
    steps(run, (2,))
    state = run.dm.state_dict()
    for part in ("value", "target"):
        state[f"dni.0.replay.{part}_3"] = state[f"dni.0.replay.{part}_0"]

    with pytest.raises(dg.CheckpointError, match=r"replay\.target_3: missing here"):
        fresh.dm.load_state_dict(state)
    assert not any("replay" in key for key in fresh.dm.state_dict())
