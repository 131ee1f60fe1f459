"""The command line: `inspect`, `plan`, `draw`, `check`, `bench` and `demo`. What they need is imported inside them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .passes.errors import DniGraphError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnigraph")
def main() -> None:
    """Cut a PyTorch model into parts that learn without waiting for each other.

    SPEC names a model: package.module:callable, path/to/file.py:callable, or timm:NAME, transformers:NAME,
    torchvision:NAME. The callable returns a model, (model, example_args), (model, example_args, example_kwargs), or a
    dict with these names.

    Exit codes: 0 all is well, 1 the model cannot be cut or is not the same function, 2 the command makes no sense.
    """


@contextmanager
def _told() -> Iterator[None]:
    """An error of the library is a message."""
    try:
        yield
    except DniGraphError as error:
        raise click.ClickException(str(error)) from error


CAPTURES = ["auto", "record", "export", "hooks", "symbolic"]
Command = Callable[..., None]


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


looked_at = _options(
    click.argument("spec"),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="SHAPE[:DTYPE]",
        help='An input of the example call, "4,3,32,32" or "mask=4,16:bool"; may be repeated.',
    ),
    click.option("--capture", type=click.Choice(CAPTURES), default="auto", show_default=True, help="How to capture."),
)
cut = _options(
    click.option(
        "--cut", "cuts", multiple=True, metavar="PLACE", help="A module, glob, re:..., node or edge a->b; repeatable."
    ),
    click.option("--parts", type=click.IntRange(min=1), help="Cut into so many parts of even cost."),
    click.option("--boundary", metavar="NAME", help="What stands on the cuts: dni, local-loss, oracle, ..."),
    click.option("--condition", metavar="LABEL", help="What heads see: one_hot:CLASSES, embedded:VOCABULARY:WIDTH."),
)
as_data = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@main.command(epilog="Example: dnigraph inspect nets.py:small --input 4,3,32,32")
@looked_at
@click.option("--nodes", is_flag=True, help="With the names of the graph's nodes.")
@as_data
def inspect(nodes: bool, as_json: bool, **asked: Any) -> None:
    """Show where the model can be cut, what would cross there, and suggested cuts."""
    from .commands import looks

    with _told():
        looks.inspect(looks.Request(**asked), nodes, as_json)


@main.command(epilog="Example: dnigraph plan nets.py:small --cut layer1 --cut layer2")
@looked_at
@cut
@as_data
def plan(as_json: bool, **asked: Any) -> None:
    """Show the parts and what crosses between them, without building anything."""
    from .commands import looks

    with _told():
        looks.plan(looks.Request(**asked), as_json)


@main.command(epilog="Example: dnigraph draw nets.py:small graph.svg --parts 4 --boundary dni --condition one_hot:10")
@looked_at
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@cut
def draw(out: Path, **asked: Any) -> None:
    """Draw the cut graph; the suffix of OUT says how: .svg, .html, .png, .dot, .mmd or .json."""
    from .commands import looks

    with _told():
        looks.draw(looks.Request(**asked), out)


@main.command(epilog="Example: dnigraph check nets.py:small --parts 2")
@looked_at
@cut
@as_data
def check(as_json: bool, **asked: Any) -> None:
    """Prove on the example that the cut model computes the same as the model, gradients included."""
    from .commands import looks

    with _told():
        right = looks.check(looks.Request(**asked), as_json)
    sys.exit(not right)


@main.command(epilog="Example: dnigraph bench nets.py:small --parts 2 --condition one_hot:10 --steps 300")
@looked_at
@click.option("--cut", "cuts", multiple=True, metavar="PLACE", help="As in plan; repeatable.")
@click.option("--parts", type=click.IntRange(min=1), help="Cut into so many parts of even cost.")
@click.option(
    "--boundary", "boundaries", multiple=True, metavar="NAME", help="Repeatable; without it auto, local-loss, dni."
)
@click.option("--condition", metavar="LABEL", help="What heads see: one_hot:CLASSES, embedded:VOCABULARY:WIDTH.")
@click.option("--steps", type=click.IntRange(min=10), default=200, show_default=True, help="Of each way of learning.")
@click.option("--seconds", type=click.FloatRange(min=1), default=600.0, show_default=True, help="At most so long.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep the state; go on from there.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows there, as JSON Lines.")
@as_data
def bench(
    boundaries: tuple[str, ...], steps: int, seconds: float, folder: Path | None, out: Path | None, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Train the model side by side: by backprop, with each boundary and in the controls. Does decoupling pay?

    The callable of SPEC may return a dict with "data" (a loader), "loss", "optimizer" and "test" beside "model".
    Without data it is random: then time and memory count, and losses say nothing.
    """
    from .commands import trials

    with _told():
        trials.bench(trials.Trial(boundaries, steps, seconds, folder, out, as_json), asked)


@main.command()
@click.option(
    "--data",
    type=click.Choice(["digits", "fashion-mnist", "mnist", "cifar10"]),
    default="digits",
    show_default=True,
    help="Real images to learn from.",
)
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Training steps for each way of learning.")
@click.option("--batch", type=click.IntRange(min=2), default=64, show_default=True, help="Images in a step.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and batches.")
@click.option(
    "--draw",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/demo.svg"),
    show_default=True,
    help="Where the drawing of the cut graph goes (.svg, .html, .dot, .mmd, .json).",
)
def demo(data: str, steps: int | None, batch: int, seed: int, draw: Path) -> None:
    """Cut a small ResNet into 4 parts and train it in every way, beside backprop and the controls."""
    from .demo.run import run

    with _told():
        run(data, steps, batch, seed, draw)
