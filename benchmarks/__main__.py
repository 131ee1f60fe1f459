"""All benchmarks as commands of one: `python -m benchmarks list` names them.

python -m benchmarks                                those of minutes
python -m benchmarks step_time memory --rounds 5    the named ones, each with options of its own
python -m benchmarks --results mine step_time       leave the results of the repository as they are
"""

import importlib
from pathlib import Path

import click

from . import rows

MINUTES = (
    "step_time",
    "memory",
    "compile_time",
    "window_time",
    "bptt_memory",
    "network_size",
    "throughput",
    "every_layer_cut",
    "harm",
)
HOURS = (
    "recurrent",
    "asynchrony",
    "two_clocks",
    "staleness",
    "full_length",
    "zoo",
)  # can be stopped, and go on where they were
WRITERS = ("readme", "curves")  # make tables and pictures from the results


class Benchmarks(click.Group):
    """The commands of the files of this folder, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *MINUTES, *HOURS, *WRITERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in (*MINUTES, *HOURS, *WRITERS):
            return super().get_command(ctx, cmd_name)
        command: click.Command = importlib.import_module(f"benchmarks.{cmd_name}").main
        return command


@click.group(cls=Benchmarks, chain=True, invoke_without_command=True)
@click.option("--results", type=click.Path(path_type=Path), help="Another folder for results.")
@click.pass_context
def main(ctx: click.Context, results: Path | None) -> None:
    """Run the named benchmarks, or those that take minutes."""
    if results is not None:
        rows.RESULTS = results
    if ctx.invoked_subcommand is None:
        for name in MINUTES:
            importlib.import_module(f"benchmarks.{name}").main.main([], standalone_mode=False)


@main.command("list")
def list_() -> None:
    """Name all benchmarks, and the question of each."""
    for title, names in (("of minutes", MINUTES), ("of hours; they can be stopped, and go on where they were", HOURS)):
        click.echo(f"{title}:")
        for name in names:
            click.echo(f"  {name:16} {question(name)}")


def question(name: str) -> str:
    """The first paragraph of a benchmark's docstring."""
    text = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
