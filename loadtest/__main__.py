"""`python -m loadtest`: runs all benchmarks, or the named one.

Each benchmark prints ratios of values measured in one run on one machine, so that results from
different machines can be compared.
"""

import click

from loadtest.edge import edge
from loadtest.events import events
from loadtest.fanout import fanout
from loadtest.feed import feed
from loadtest.followers import followers
from loadtest.growth import growth
from loadtest.memory import memory
from loadtest.outages import outages
from loadtest.pipeline import pipeline
from loadtest.uploads import uploads
from loadtest.watchers import watchers


@click.group(invoke_without_command=True)
@click.pass_context
def cli(context: click.Context) -> None:
    """Benchmarks. Without a name, runs all of them."""
    if context.invoked_subcommand is None:
        for command in cli.commands.values():
            context.invoke(command)


for command in (
    pipeline,
    uploads,
    edge,
    events,
    feed,
    followers,
    fanout,
    memory,
    growth,
    watchers,
    outages,
):
    cli.add_command(command)


if __name__ == "__main__":
    cli(prog_name="python -m loadtest")
