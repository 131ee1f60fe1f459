"""The command line: `dnigraph demo`."""

from pathlib import Path

import click

from .passes.errors import DniGraphError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnigraph")
def main() -> None:
    """Cut a PyTorch model into parts that learn without waiting for each other."""


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

    try:
        run(data, steps, batch, seed, draw)
    except DniGraphError as error:
        raise click.ClickException(str(error)) from error
