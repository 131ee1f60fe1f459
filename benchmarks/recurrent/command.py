"""The command: run a suite, or go on with it."""

import click

from ..jobs import take_turns
from .suites import SUITES, groups


@click.command()
@click.argument("suite", type=click.Choice(SUITES))
@click.option("--minutes", default=1e9, help="Stop after so many.")
@click.option("--text", default="king-james", help="king-james or penn-treebank.")
def main(suite: str, minutes: float, text: str) -> None:
    """Run a suite, or go on with it."""
    take_turns(f"recurrent_{suite}", groups(suite, text), minutes)
