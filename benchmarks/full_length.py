"""Do heads that see no label learn at the paper's full length, because they know the labels by heart?

MNIST, fully connected nets of width 256 with BatchNorm, every layer cut, in the budget of Jaderberg et al. (2017,
arXiv 1608.05343): 500,000 steps, batch 256, Adam 3e-5, divided by 10 after 60 and 80% of the steps, inputs in [0, 1].
A head of DNI has two hidden layers of 1024 with BatchNorm, one of cDNI none; the last layer begins at zero, and learns
by its squared distance from the gradient that comes. At 2,000 epochs a head may know each training image, and so its
label. Against that stand a head with hidden layers of 64, images that are shifted anew in each step (by up to two
pixels each way), and one label in five drawn at random; and the controls: backprop with the same data, no backprop
below the last layer, and backprop for 1% of the steps, after which the lower layers are frozen.

All variants of one depth are one stacked model, whose steps are written out (a test holds them to autograd); on a GPU
they are replayed as CUDA graphs, a stream for each depth. Ten times in a run: errors, losses, and how near each
estimate is to the true gradient, on training images and on test images, in batches of 256.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from . import rows, tables
from .rows import Row

WIDTH, BATCH, CLASSES, INPUTS = 256, 256, 10, 784
STEPS, RATE, DROPS = 500_000, 3e-5, (0.6, 0.8)
BIG, SMALL = 1024, 64  # hidden units of heads
NOISE, SHIFT = 0.2, 2  # share of labels drawn at random; pixels each way
WARM = 0.01  # share of the steps with backprop, before the lower layers are frozen
EPS, MOMENTUM = 1e-5, 0.1  # of BatchNorm
MARKS, CHUNK = 10, 20  # evaluations of a run; steps of a graph
KEY = ("arm", "layers", "seed")


@dataclass(frozen=True)
class Variant:
    """One way of learning.

    Attributes:
        head: hidden units of the two layers of its heads; 0: a linear one that sees the label; None: no heads.
        true: the share of the true gradient that goes down, before and after the warm-up.
    """

    name: str
    head: int | None = None
    true: tuple[float, float] = (0.0, 0.0)
    shifted: bool = False
    noisy: bool = False


VARIANTS = {
    v.name: v
    for v in (
        Variant("DNI", BIG),
        Variant("DNI, shifted images", BIG, shifted=True),
        Variant("DNI, noisy labels", BIG, noisy=True),
        Variant("DNI, narrow heads", SMALL),
        Variant("cDNI", 0),
        Variant("backprop", true=(1.0, 1.0)),
        Variant("backprop, shifted images", true=(1.0, 1.0), shifted=True),
        Variant("backprop, noisy labels", true=(1.0, 1.0), noisy=True),
        Variant("backprop for 1% of the steps, then freeze", true=(1.0, 0.0)),
        Variant("no backprop"),
    )
}


@dataclass
class Data:
    """Images in [0, 1] and labels. Shapes: images [N, 784], labels [2, N]: the true ones, and those with noise."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Data":
        """The same in another place."""
        return Data(
            self.x.to(device, dtype), self.y.to(device), self.test_x.to(device, dtype), self.test_y.to(device)
        )  # fmt: skip


def with_noise(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Data:
    """The data, with a second row of labels of which one in five was drawn at random, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(CLASSES, y.shape, generator=generator)
    noisy = torch.where(torch.rand(len(y), generator=generator) < NOISE, drawn, y)
    return Data(x.flatten(1), torch.stack((y, noisy)), test_x.flatten(1), test_y)


def normalised(z: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """BatchNorm and ReLU of stacked layers: result, normalised values, 1 / deviation, mean, variance.

    Shapes: z [E, B, H]; scale, shift [E, H].
    """
    variance, mean = torch.var_mean(z, 1, correction=0)
    inverse = torch.rsqrt(variance + EPS)
    hat = (z - mean[:, None]) * inverse[:, None]
    return torch.relu(hat * scale[:, None] + shift[:, None]), hat, inverse, mean, variance


def through_norm(g: Tensor, h: Tensor, hat: Tensor, inverse: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of z, scale and shift, from that of the result."""
    g = g * (h > 0)
    shift, gain = g.sum(1), (g * hat).sum(1)
    count = g.shape[1]
    z = (scale * inverse)[:, None] * (g - (shift[:, None] + hat * gain[:, None]) / count)
    return z, gain, shift


@dataclass
class Layers:
    """Stacked linear layers, all but the last with BatchNorm and ReLU, and their steps written out."""

    sizes: tuple[int, ...]
    count: int
    like: Tensor
    zero_last: bool = False
    parameters: list[Tensor] = field(init=False)
    gradients: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters, self.means, self.variances = [], [], []
        for i, (a, b) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            last = i == len(self.sizes) - 2
            bound = 0.0 if last and self.zero_last else a**-0.5  # torch's default for a linear layer
            # one layer after the other, so that the first of two stacks is that of a stack of one
            drawn = [torch.empty(a + 1, b, dtype=torch.float64).uniform_(-bound, bound) for _ in range(self.count)]
            own = torch.stack(drawn).to(self.like)
            self.parameters += [own[:, :a].contiguous(), own[:, a:].contiguous()]
            if not last:
                self.parameters += [self._full(b, 1.0), self._full(b, 0.0)]
                self.means.append(self._full(b, 0.0))
                self.variances.append(self._full(b, 1.0))
        self.gradients = [torch.zeros_like(p) for p in self.parameters]

    def _full(self, width: int, value: float) -> Tensor:
        return torch.full((self.count, width), value).to(self.like)

    @property
    def depth(self) -> int:
        """How many of them are normalised."""
        return len(self.sizes) - 2

    def hidden(self, i: int, x: Tensor, track: bool) -> tuple[Tensor, ...]:
        """A normalised layer, with the statistics of the batch. Returns what `back` needs."""
        weight, bias, scale, shift = self.parameters[4 * i : 4 * i + 4]
        z = torch.baddbmm(bias, x, weight)
        h, hat, inverse, mean, variance = norm(z, scale, shift)
        if track:
            unbiased = variance * (x.shape[1] / (x.shape[1] - 1))
            self.means[i].lerp_(mean, MOMENTUM)
            self.variances[i].lerp_(unbiased, MOMENTUM)
        return x, h, hat, inverse

    def last(self, x: Tensor) -> Tensor:
        """The layer at the end."""
        return torch.baddbmm(self.parameters[-1], x, self.parameters[-2])

    def back(self, i: int, kept: tuple[Tensor, ...], g: Tensor, entered: bool, note: bool = True) -> Tensor | None:
        """From the gradient of a normalised layer's result: those of its weights, and that of what entered it."""
        x, h, hat, inverse = kept
        weight, _, scale, _ = self.parameters[4 * i : 4 * i + 4]
        z, gain, offset = back_norm(g, h, hat, inverse, scale)
        if note:
            own = self.gradients[4 * i : 4 * i + 4]
            torch.bmm(x.transpose(1, 2), z, out=own[0])
            torch.sum(z, 1, keepdim=True, out=own[1])
            own[2].copy_(gain)
            own[3].copy_(offset)
        return torch.bmm(z, weight.transpose(1, 2)) if entered else None

    def back_last(self, x: Tensor, g: Tensor, note: bool = True) -> Tensor:
        """The same for the layer at the end."""
        if note:
            torch.bmm(x.transpose(1, 2), g, out=self.gradients[-2])
            torch.sum(g, 1, keepdim=True, out=self.gradients[-1])
        return torch.bmm(g, self.parameters[-2].transpose(1, 2))

    def evaluated(self, x: Tensor) -> Tensor:
        """The output in eval mode. Shapes: [N, in] -> [E, N, out]."""
        h = x.expand(self.count, *x.shape)
        for i in range(self.depth):
            weight, bias, scale, shift = self.parameters[4 * i : 4 * i + 4]
            gain = scale * torch.rsqrt(self.variances[i] + EPS)
            h = torch.relu((torch.baddbmm(bias, h, weight) - self.means[i][:, None]) * gain[:, None] + shift[:, None])
        return self.last(h)


norm: Any = normalised  # or what is made of them for a GPU
back_norm: Any = through_norm


class Heads:
    """The heads of some variants at all cuts, as one stack: cut by cut, in each the variants."""

    def __init__(self, hidden: int, own: Sequence[int], cuts: int, like: Tensor):
        sizes = (WIDTH, hidden, hidden, WIDTH) if hidden else (WIDTH + CLASSES, WIDTH)
        self.hidden, self.cuts = hidden, cuts
        self.own = torch.tensor(own, device=like.device)  # the variants
        self.layers = Layers(sizes, cuts * len(own), like, zero_last=True)
        self._kept: list[tuple[Tensor, ...]] = []

    def estimate(self, h: Tensor, truth: Tensor, track: bool) -> Tensor:
        """Shapes: h [cuts, E, B, H], truth [E, B, classes] -> [cuts, own, B, H]."""
        x = h[:, self.own]
        if not self.hidden:
            x = torch.cat((x, truth[self.own].expand(self.cuts, -1, -1, -1)), -1)
        x, self._kept = x.flatten(0, 1), []
        for i in range(self.layers.depth):
            kept = self.layers.hidden(i, x, track)
            self._kept.append(kept)
            x = kept[1]
        self._entered = x
        return self.layers.last(x).unflatten(0, (self.cuts, len(self.own)))

    def regress(self, estimate: Tensor, target: Tensor) -> None:
        """The gradients of the squared distance, the mean over the batch."""
        distance = (estimate - target[:, self.own]).flatten(0, 1)
        g = self.layers.back_last(self._entered, distance * (2 / distance.shape[1]))
        for i in reversed(range(self.layers.depth)):
            back = self.layers.back(i, self._kept[i], g, entered=i > 0)
            g = back if back is not None else g


class Ensemble:
    """All variants of one depth.

    Args:
        layers: with the last one, which is not cut off.
    """

    def __init__(self, variants: Sequence[Variant], layers: int, seed: int, data: Data):
        torch.manual_seed(seed)
        self.variants, self.layers, self.data = list(variants), layers, data
        like, count = data.x[:1], len(variants)
        one = Layers((INPUTS, *[WIDTH] * (layers - 1), CLASSES), 1, like)
        self.net = Layers(one.sizes, count, like)  # all begin with the same weights
        for stacked, first in zip(self.net.parameters, one.parameters, strict=True):
            stacked.copy_(first.expand_as(stacked))
        own: dict[int, list[int]] = {}
        for i, variant in enumerate(variants):
            if variant.head is not None:
                own.setdefault(variant.head, []).append(i)
        self.heads = [Heads(hidden, members, layers - 1, like) for hidden, members in own.items()]
        device = like.device
        self.shifted = torch.tensor([int(v.shifted) for v in variants], device=device)
        self.noisy = torch.tensor([int(v.noisy) for v in variants], device=device)
        self.true = torch.tensor([v.true[0] for v in variants], device=device, dtype=like.dtype)[:, None, None]
        self.rate = torch.tensor(RATE, device=device)
        every = [self.net, *(heads.layers for heads in self.heads)]
        self.parameters = [p for layers_ in every for p in layers_.parameters]
        for layers_ in every:
            for parameter, gradient in zip(layers_.parameters, layers_.gradients, strict=True):
                parameter.requires_grad_()
                parameter.grad = gradient
        on_gpu = device.type == "cuda"
        self.adam = torch.optim.Adam(
            self.parameters, lr=self.rate if on_gpu else RATE, fused=on_gpu, capturable=on_gpu, eps=1e-8
        )
        self.eye = torch.eye(CLASSES, device=device, dtype=like.dtype)
        places = torch.arange(28)
        grid = (places[:, None] * (28 + 2 * SHIFT) + places).flatten()
        self.grid = grid.to(device)
        self.padded = F.pad(data.x.unflatten(1, (28, 28)), [SHIFT] * 4).flatten(1)

    def inputs(self, picked: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """What each variant sees of a batch. Shapes: picked, moved [B] -> [E, B, 784], [E, B]."""
        plain = self.data.x[picked]
        shifted = self.padded[picked].gather(1, moved[:, None] + self.grid)
        return torch.stack((plain, shifted))[self.shifted], self.data.y[:, picked][self.noisy]

    @torch.no_grad()
    def step(self, picked: Tensor, moved: Tensor) -> None:
        """One step of all variants."""
        x, y = self.inputs(picked, moved)
        self.gradients(x, self.eye[y])
        self.adam.step()

    def gradients(self, x: Tensor, truth: Tensor) -> None:
        """Forward, backward between the cuts, and the regression of the heads; gradients into their buffers."""
        kept, out = self.forward(x, track=True)
        h = torch.stack([k[1] for k in kept])
        estimates = [heads.estimate(h, truth, track=True) for heads in self.heads]
        targets = []
        entered = self.net.back_last(kept[-1][1], (torch.softmax(out, -1) - truth) / x.shape[1])
        for i in reversed(range(len(kept))):
            targets.append(entered)
            g = entered * self.true
            for heads, estimate in zip(self.heads, estimates, strict=True):
                g[heads.own] = estimate[i]
            back = self.net.back(i, kept[i], g, entered=i > 0)
            entered = back if back is not None else entered
        target = torch.stack(targets[::-1])
        for heads, estimate in zip(self.heads, estimates, strict=True):
            heads.regress(estimate, target)

    def forward(self, x: Tensor, track: bool) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """The layers of the net, and its output."""
        kept: list[tuple[Tensor, ...]] = []
        for i in range(self.net.depth):
            kept.append(self.net.hidden(i, x, track))
            x = kept[-1][1]
        return kept, self.net.last(x)

    # ---- measures

    @torch.no_grad()
    def scores(self) -> list[Row]:
        """What is measured of each variant."""
        data, count = self.data, len(self.variants)
        found: list[Row] = [{} for _ in self.variants]
        train = slice(0, 10_000)
        for name, x, labels in (
            ("test", data.test_x, data.test_y.expand(count, -1)),
            ("train", data.x[train], data.y[self.noisy][:, train]),
            ("train, true labels", data.x[train], data.y[:1, train].expand(count, -1)),
        ):
            out = torch.cat([self.net.evaluated(chunk) for chunk in x.split(2000)], 1)
            wrong = 100 * (out.argmax(-1) != labels).double().mean(1)
            losses = [F.cross_entropy(o.double(), y) for o, y in zip(out, labels, strict=True)]
            for row, error, loss in zip(found, wrong.tolist(), torch.stack(losses).tolist(), strict=True):
                row[f"{name} error %"], row[f"{name} loss"] = error, loss
        for name, x, y in (("train", data.x, data.y), ("test", data.test_x, data.test_y.expand(2, -1))):
            for row, near in zip(found, self._nearness(x, y), strict=True):
                row |= {f"{measure}, {name}": value for measure, value in near.items()}
        return found

    def _nearness(self, images: Tensor, labels: Tensor, batches: int = 8) -> list[Row]:
        """How near the estimates are to the true gradients of the same batches: means over some of 256."""
        sums: dict[str, Tensor] = {}
        batches = min(batches, len(images) // BATCH)
        for i in range(batches):
            picked = slice(i * BATCH, (i + 1) * BATCH)
            x = images[picked].expand(len(self.variants), -1, -1)
            y = labels[self.noisy][:, picked]
            truth = self.eye[y]
            kept, out = self.forward(x, track=False)
            p = torch.softmax(out, -1)
            true = self._down(kept, (p - truth) / BATCH)
            each = torch.stack([self._down(kept, (p - row) / BATCH) for row in self.eye], 1)  # [cuts, label, E, B, H]
            h = torch.stack([k[1] for k in kept])
            for heads in self.heads:
                estimate, own = heads.estimate(h, truth, track=False), heads.own
                near = F.cosine_similarity(estimate.flatten(2), true[:, own].flatten(2), dim=-1)  # [cuts, own]
                said = F.cosine_similarity(estimate[:, None], each[:, :, own], dim=-1).argmax(1)  # [cuts, own, B]
                right = 100 * (said == y[own]).to(near.dtype).mean(-1)
                weight = [self._first_weight(kept[0], g, own) for g in (estimate[0], true[0, own])]
                first = F.cosine_similarity(weight[0].flatten(1), weight[1].flatten(1))
                size = estimate.flatten(2).norm(dim=-1) / true[:, own].flatten(2).norm(dim=-1)
                for name, value in (("cosine", near), ("label %", right), ("size", size), ("weight", first[None])):
                    sums.setdefault(name, near.new_zeros(len(near), len(self.variants)))[: len(value), own] += value
        headed = {int(i) for heads in self.heads for i in heads.own}
        found: list[Row] = []
        for i in range(len(self.variants)):
            means = {name: (value[:, i] / batches).tolist() for name, value in sums.items()} if i in headed else {}
            found.append(
                {
                    "cosine by cut": means["cosine"],
                    "label read %, by cut": means["label %"],
                    "size by cut": means["size"],
                    "weight cosine": means["weight"][0],
                }
                if means
                else {}
            )
        return found

    def _down(self, kept: list[tuple[Tensor, ...]], g: Tensor) -> Tensor:
        """The true gradients at all cuts. Shapes: [E, B, classes] -> [cuts, E, B, H]."""
        found = [self.net.back_last(kept[-1][1], g, note=False)]
        for i in range(len(kept) - 1, 0, -1):
            back = self.net.back(i, kept[i], found[-1], entered=True, note=False)
            assert back is not None
            found.append(back)
        return torch.stack(found[::-1])

    def _first_weight(self, kept: tuple[Tensor, ...], g: Tensor, own: Tensor) -> Tensor:
        x, h, hat, inverse = (value[own] for value in kept)
        z, _, _ = through_norm(g, h, hat, inverse, self.net.parameters[2][own])
        return torch.bmm(x.transpose(1, 2), z)


class Batches:
    """Whole epochs in random order, and a shift for each image, `CHUNK` steps at a time."""

    def __init__(self, count: int, seed: int, device: torch.device):
        self._count, self._device = count, device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long, device=device)

    def chunk(self, steps: int) -> tuple[Tensor, Tensor]:
        """Shapes: two of [steps, B]."""
        while len(self._order) < steps * BATCH:
            fresh = torch.randperm(self._count, generator=self._generator, device=self._device)
            self._order = torch.cat((self._order, fresh))
        picked, self._order = self._order[: steps * BATCH], self._order[steps * BATCH :]
        shifts = torch.randint(0, 2 * SHIFT + 1, (2, steps * BATCH), generator=self._generator, device=self._device)
        moved = shifts[0] * (28 + 2 * SHIFT) + shifts[1]
        return picked.view(steps, BATCH), moved.view(steps, BATCH)


class Run:
    """The training of an ensemble: steps of `CHUNK` at once, on a GPU as one graph on a stream of its own."""

    def __init__(self, ensemble: Ensemble, steps: int, seed: int):
        self.ensemble, self.steps, self.done = ensemble, steps, 0
        device = ensemble.data.x.device
        self._on_gpu = device.type == "cuda"
        self._batches = Batches(len(ensemble.data.x), seed, device)
        self._picked, self._moved = (b.clone() for b in self._batches.chunk(CHUNK))
        self._graph: Any = None
        self._stream: Any = torch.cuda.Stream() if self._on_gpu else None
        self._ended: list[Any] = []  # events behind the last chunks

    def capture(self) -> None:
        """Make the graph. The state is put back, so that a run begins at its beginning."""
        tensors = [*self.ensemble.parameters, *self._statistics()]
        before = [t.detach().clone() for t in tensors]
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                self.ensemble.step(self._picked[0], self._moved[0])
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            for i in range(CHUNK):
                self.ensemble.step(self._picked[i], self._moved[i])
        torch.cuda.synchronize()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for state in self.ensemble.adam.state.values():
                for value in state.values():
                    value.zero_()
        torch.cuda.synchronize()

    def _statistics(self) -> Iterator[Tensor]:
        for layers in (self.ensemble.net, *(heads.layers for heads in self.ensemble.heads)):
            yield from (*layers.means, *layers.variances)

    @property
    def ready(self) -> bool:
        """Whether there is room for one more chunk in the GPU's queue."""
        self._ended = [event for event in self._ended if not event.query()]
        return len(self._ended) < 3

    def advance(self) -> None:
        """Make `CHUNK` steps."""
        self._set_schedule()
        if not self._on_gpu:
            for picked, moved in zip(*self._batches.chunk(CHUNK), strict=True):
                self.ensemble.step(picked, moved)
        else:
            with torch.cuda.stream(self._stream):
                picked, moved = self._batches.chunk(CHUNK)
                self._picked.copy_(picked)
                self._moved.copy_(moved)
                self._graph.replay()
                event = torch.cuda.Event()
                event.record()
                self._ended.append(event)
        self.done += CHUNK

    def _set_schedule(self) -> None:
        """The learning rate, and what the frozen control gets, where they change."""
        share, before = self.done / self.steps, (self.done - CHUNK) / self.steps
        if self.done and not any(before < mark <= share for mark in (*DROPS, WARM)):
            return
        rate = RATE * 0.1 ** sum(share >= mark for mark in DROPS)
        true = [v.true[share >= WARM] for v in self.ensemble.variants]
        context: Any = torch.cuda.stream(self._stream) if self._on_gpu else torch.no_grad()
        with context:
            self.ensemble.true.copy_(torch.tensor(true)[:, None, None])
            self.ensemble.rate.fill_(rate)
        for group in self.ensemble.adam.param_groups:
            group["lr"] = self.ensemble.rate if self._on_gpu else rate

    def scores(self) -> list[Row]:
        """Measures of all variants now, on this run's stream."""
        if not self._on_gpu:
            return self.ensemble.scores()
        with torch.cuda.stream(self._stream):
            return self.ensemble.scores()


def chosen(layers: int, names: Sequence[str], everywhere: bool) -> list[Variant]:
    """The variants of a depth: those with large heads beside the first one only where they are cheap."""
    picked = [VARIANTS[name] for name in names or VARIANTS]
    if everywhere or layers <= 4:
        return picked
    return [v for v in picked if v.name == "DNI" or v.head != BIG]


def train(runs: Sequence[Run], file: Path, seed: int, seconds: float, steps_asked: int) -> None:
    """All runs side by side; a row for each variant after each tenth of its steps."""
    begun = time.monotonic()
    marks = {
        run: [max(CHUNK, round(run.steps * (i + 1) / MARKS / CHUNK) * CHUNK) for i in range(MARKS)] for run in runs
    }
    curves: dict[tuple[str, int], list[Row]] = {}
    while waiting := [run for run in runs if run.done < marks[run][-1]]:
        for run in waiting:
            if run._on_gpu and not run.ready:
                continue
            run.advance()
            if run.done in marks[run]:
                for variant, scores in zip(run.ensemble.variants, run.scores(), strict=True):
                    key = {"arm": variant.name, "layers": run.ensemble.layers, "seed": seed}
                    curve = curves.setdefault((variant.name, run.ensemble.layers), [])
                    curve.append({"steps": run.done, **scores})
                    said = {"steps": run.done, "of": run.steps, "of the paper's": steps_asked}
                    device = torch.cuda.get_device_name() if run._on_gpu else "CPU"
                    clock = {"seconds": time.monotonic() - begun, "device": device}
                    rows.put(file, {**key, **said, **scores, **clock, "curve": curve}, KEY)
                print(f"{run.ensemble.layers} layers, {run.done} steps, {time.monotonic() - begun:.0f} s", flush=True)
        if time.monotonic() - begun > seconds:
            print(f"stopped after {seconds} s: {[run.done for run in runs]}", flush=True)
            return


def measured_rate(runs: Sequence[Run], chunks: int = 40) -> float:
    """Seconds of a step of all runs side by side, on the GPU."""
    for run in runs:
        run.capture()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(chunks):
        for run in runs:
            run.advance()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / (chunks * CHUNK)
    for run in runs:
        run.done = 0
    return seconds


def compiled() -> None:
    """Let the compiler fuse what lies between matrix products."""
    global norm, back_norm
    norm = torch.compile(normalised, dynamic=False)
    back_norm = torch.compile(through_norm, dynamic=False)


def table(results: list[Row]) -> str:
    """Test error by arm and depth, with the cosines at the lowest cut."""
    depths = sorted({row["layers"] for row in results})
    heads = ["MNIST, test error % (estimate's cosine at the lowest cut: training / test images)"]
    heads += [f"{depth} layers" for depth in depths]
    cells = {(row["arm"], row["layers"]): row for row in results}
    lines = [
        (arm, *(_cell(cells.get((arm, d))) for d in depths)) for arm in VARIANTS if any(k[0] == arm for k in cells)
    ]
    return tables.markdown(heads, lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    known = "cosine by cut, train" in row
    near = f" ({row['cosine by cut, train'][0]:.2f} / {row['cosine by cut, test'][0]:.2f})" if known else ""
    return f"{row['test error %']:.2f}{near}"


def loaded(path: Path | None) -> Data:
    """MNIST: from a file that `torch.save` has written, or as the library finds it."""
    if path is not None:
        x, y, test_x, test_y = torch.load(path, weights_only=True)
        return with_noise(x.float() / 255, y.long(), test_x.float() / 255, test_y.long())
    from dnigraph.demo import images

    found = images.load("mnist")
    return with_noise(found.train_images, found.train_labels, found.test_images, found.test_labels)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="A file with MNIST's four tensors, bytes.")
@click.option("--layers", "depths", multiple=True, type=int, default=(3, 4, 5, 6), show_default=True)
@click.option("--variant", "names", multiple=True, type=click.Choice(list(VARIANTS)), help="All without it.")
@click.option("--everywhere", is_flag=True, help="All variants at all depths.")
@click.option("--steps", default=STEPS, show_default=True, help="At most so many.")
@click.option("--seconds", default=float("inf"), help="On a GPU as many steps as fit; else where the run stops.")
@click.option("--seed", default=0, show_default=True)
@click.option("--smoke", is_flag=True, help="Only see whether all works, and how long a step takes.")
@click.option("--compile/--no-compile", "fused", default=True, show_default=True, help="On a GPU.")
def main(
    data: Path | None, depths: tuple[int, ...], names: tuple[str, ...], everywhere: bool, steps: int, seconds: float,
    seed: int, smoke: bool, fused: bool,
) -> None:  # fmt: skip
    """Train all variants side by side, and write a row for each after each tenth of its steps."""
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begun = time.monotonic()
    if device.type == "cuda" and fused:
        compiled()
    images = loaded(data).to(device, torch.float32)
    runs = [Run(Ensemble(chosen(d, names, everywhere), d, seed, images), steps, seed) for d in depths]
    if smoke:
        look(runs)
        return
    if device.type == "cuda":
        each = measured_rate(runs)
        fitting = int(0.97 * (seconds - (time.monotonic() - begun)) / each) if seconds < float("inf") else steps
        runs = [Run(Ensemble(run.ensemble.variants, run.ensemble.layers, seed, images), steps, seed) for run in runs]
        for run in runs:
            run.steps = min(steps, fitting)
            run.capture()
        print(f"{1000 * each:.3f} ms a step of all depths; {runs[0].steps} steps fit", flush=True)
    train(runs, rows.results("full_length"), seed, seconds - (time.monotonic() - begun), steps)


def look(runs: Sequence[Run]) -> None:
    """Compare a replayed graph with the same steps one by one, and time both together and each depth alone."""
    for run in runs:
        begun = time.perf_counter()
        run.capture()
        captured = time.perf_counter() - begun
        picked, moved = run._picked.clone(), run._moved.clone()
        first = [p.detach().clone() for p in run.ensemble.parameters]
        run._graph.replay()
        torch.cuda.synchronize()
        replayed = [p.detach().clone() for p in run.ensemble.parameters]
        with torch.no_grad():
            for parameter, value in zip(run.ensemble.parameters, first, strict=True):
                parameter.copy_(value)
        for state in run.ensemble.adam.state.values():
            for value in state.values():
                value.zero_()
        for i in range(CHUNK):
            run.ensemble.step(picked[i], moved[i])
        apart = max(float((a - b).abs().max()) for a, b in zip(replayed, run.ensemble.parameters, strict=True))
        moved_by = max(float((a - b).abs().max()) for a, b in zip(replayed, first, strict=True))
        alone = measured_rate([run], 10)
        words = f"capture {captured:.1f} s, graph and single steps {apart:.2e} apart (moved {moved_by:.2e})"
        print(f"{run.ensemble.layers} layers: {words}, {1000 * alone:.3f} ms a step alone", flush=True)
    begun = time.perf_counter()
    for row in runs[0].scores():
        print(rows.rounded(row, 3))
    print(f"scores of the first: {time.perf_counter() - begun:.1f} s")
    together = measured_rate(runs, 50)
    print(f"{1000 * together:.3f} ms a step of all: {STEPS * together:.0f} s for {STEPS} steps", flush=True)


if __name__ == "__main__":
    main()
