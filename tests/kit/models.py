"""Small models, each with one thing that real models do and that tools trip over. Each promise is tested on them all.

`ZOO` maps a name to a function that makes (model, example arguments, cuts).
"""

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg

CLASSES = 5
CONDITION = dg.one_hot(CLASSES)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
ZOO = {}


def zoo(make):
    ZOO[make.__name__] = make
    return make


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.bn, self.fc2, self.fc3 = (
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.bn(self.fc1(x))))))


@zoo
def chain():
    return Chain(), (torch.randn(4, 6),), ["bn", "fc2"]


class Block(nn.Module):
    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.drop = nn.Dropout(0.2)
        self.skip = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside or stride != 1 else None

    def forward(self, x):
        beside = x if self.skip is None else self.skip(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.drop(beside)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.layer1, self.layer2, self.layer3 = Block(4, 4), Block(4, 6, 2), Block(6, 6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3)))


@zoo
def resnet():
    return ResNet(), (torch.randn(4, 2, 6, 6),), ["layer1", "layer2"]


@zoo
def resnet_cut_inside_a_block():
    return ResNet(), (torch.randn(4, 2, 6, 6),), ["layer2.bn1", "layer3.conv1"]


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.join, self.head = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, CLASSES, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        c = F.relu(self.middle(b)) + b
        return self.head(F.relu(self.join(torch.cat([a, self.up(c)], 1)))).mean((2, 3))


@zoo
def unet_with_skips_over_several_cuts():
    return UNet(), (torch.randn(3, 1, 8, 8),), ["down1", "down2", "up"]


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.right = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 6))
        self.top = nn.Linear(12, CLASSES)

    def forward(self, a, b, scale=1.0):
        return self.top(torch.cat([self.left(a), self.right(b)], -1) * scale)


@zoo
def two_towers():
    return Towers(), (torch.randn(4, 4), torch.randn(4, 3)), ["left", "right"]


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6))
        self.top = nn.Linear(6, CLASSES)

    def forward(self, a, b):
        return self.top((self.encoder(a) - self.encoder(b)).abs())


@zoo
def a_module_called_twice():
    return Siamese(), (torch.randn(4, 4), torch.randn(4, 4)), ["encoder"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 6)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(6, 2, 8, batch_first=True) for _ in range(2)])
        self.norm = nn.LayerNorm(6)

    def forward(self, ids, mask=None):
        h = self.embed(ids) * 2.0
        padding = ids == 0
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=padding)
        if mask is not None:
            h = h * mask[..., None]
        return F.linear(self.norm(h), self.embed.weight).mean(1)


@zoo
def tied_weights_and_a_mask_for_all():
    ids = torch.randint(1, CLASSES, (4, 7))
    ids[0, 5:] = 0
    return Tied(), (ids,), ["layers.0", "layers.1"]


@dataclass
class Result:
    logits: torch.Tensor
    features: torch.Tensor
    nothing: object
    count: int


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.middle, self.top = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, twice: bool = False):
        self.calls += 1
        h = torch.tanh(self.body(x))
        g = torch.tanh(self.middle(h))
        return Result(self.top(g + h), h, None, x.shape[0])


@zoo
def dataclass_out_and_a_counter():
    return Several(), (torch.randn(4, 4),), ["body", "middle"]


class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)
        self.exit, self.last = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return {"early": self.exit(h), "late": self.last(torch.relu(self.b(h)))}


@zoo
def early_exit():
    return EarlyExit(), (torch.randn(4, 4),), ["a", "b"]


class Dense(nn.Module):
    """Each value is read by several later parts, and several times in each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * (i + 1), 4) for i in range(4))
        self.top = nn.Linear(20, CLASSES)

    def forward(self, x):
        found = [x]
        for layer in self.layers:
            found.append(torch.relu(layer(torch.cat(found, -1))) + found[-1].detach() * 0 + found[-1])
        return self.top(torch.cat(found, -1))


@zoo
def dense_with_many_readers():
    return Dense(), (torch.randn(4, 4),), ["layers.0", "layers.1", "layers.2"]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(4, 6, batch_first=True)
        self.decoder = nn.GRU(6, 6, batch_first=True)
        self.top = nn.Linear(6, CLASSES)

    def forward(self, x):
        out, (h, c) = self.encoder(x)
        out, _ = self.decoder(out, (h + c))
        return self.top(out[:, -1])


@zoo
def several_tensors_over_a_cut():
    return Recurrent(), (torch.randn(4, 5, 4),), ["encoder"]


class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        h, index = torch.relu(self.a(x)), torch.arange(x.shape[0])
        h = dg.cut(h, name="middle")
        return self.b(h)[index]


@zoo
def marked_by_its_author():
    return Marked(), (torch.randn(4, 4),), None


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Regions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.top = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = Rounded.apply(self.a(x) * 3)
        with torch.no_grad():
            scale = h.abs().mean() + 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            g = self.b(h / scale)
        return self.top(torch.relu(g.float()) + h)


@zoo
def regions_and_a_function_of_its_own():
    return Regions(), (torch.randn(4, 4),), ["a", "b"]


def labels(batch):
    return torch.arange(batch) % CLASSES


def loss_of(output, target):
    """One loss for all models: over every floating result of one score per class."""
    if isinstance(output, dict):
        return sum(F.cross_entropy(v, target) for v in output.values())
    return F.cross_entropy(getattr(output, "logits", output), target)


UNFIT = [("tied_weights_and_a_mask_for_all", "infopro")]  # it reads tokens: there is no input to rebuild


def cut_up(name, seed=0, **options):
    """A model of the zoo, cut: (dm, example arguments). Without a seed it is another one each time."""
    if (name, options.get("boundary")) in UNFIT:
        pytest.skip("the boundary does not fit the model")
    if seed is not None:
        torch.manual_seed(seed)
    model, args, cuts = ZOO[name]()
    return dg.decouple(model, cuts, args, **{"condition": dg.one_hot(CLASSES), "boundary": "dni", **options}), args


def opening(spec, context, head):
    """A guarded head whose guard is closed at first, opens with the first target, and closes when others have come."""
    made = dg.dni()(spec, context, head)
    made.guard.missed.fill_(0.8 if spec.name < "m" else 0.0)
    return made


BOUNDARIES = {  # every kind and option: what holds of one runner is tried with them
    "dni": dg.dni(guard=False),
    "guarded": opening,
    "warm-up": dg.dni(warm_up=5, guard=False),
    "refresh": dg.dni(refresh=3, guard=False),
    "blend": dg.dni(blend=0.5, guard=False),
    "replay": dg.dni(replay=3, guard=False),
    "all": dg.dni(warm_up=1, refresh=4, blend=0.1, replay=2),
    "oracle": "oracle",
    "local loss": "local-loss",
    "a warmed-up local loss": dg.warm_up("local-loss", 4),
    "a blended local loss": dg.warm_up(dg.refresh(dg.blend("local-loss", 0.3), 4), 1),
    "silence": "silent",
    "silence after a warm-up": dg.silent(warm_up=1),
    "silence with refreshes": dg.silent(refresh=3),
    "delayed": dg.delayed(stash=False),
    "dfa": "dfa",
    "auglocal": "auglocal",
    "infopro": "infopro",
    "a warmed-up dfa": dg.warm_up("dfa", 2),
}


def decoupled_chain(**options):
    """A chain cut after its normalisation: (dm, example)."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    return dg.decouple(Chain(), "bn", (x,), **{"condition": CONDITION, "boundary": "dni", **options}), x


def layers(forward, *names):
    """A model of linear layers and a function of (model, *inputs)."""
    model = type("Layers", (nn.Module,), {"forward": forward})()
    for name in names:
        setattr(model, name, nn.Linear(4, 4))
    return model


class Moody(nn.Module):
    """Python's randomness decides: no graph holds for the next call."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)
        self.b = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, x):
        h = self.b(torch.relu(self.norm(self.a(x))))
        if random.random() < 0.5:
            h = h * 2
        return {"y": self.c(dg.cut(h, name="middle")), "none": None}


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.c(self.b(h) + h)
