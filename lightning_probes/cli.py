"""The command `lightning-probes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Save a W&B workspace and a report template for the probes of a project.

    Args:
        arguments: Command line arguments; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="lightning-probes", description="W&B panels for the results of probes.")
    commands = parser.add_subparsers(dest="command", required=True)
    panels = commands.add_parser("panels", help="save a W&B workspace and a report template for a project")
    panels.add_argument("--entity", required=True, help="the W&B user or team")
    panels.add_argument("--project", required=True, help="the W&B project")
    panels.add_argument("--loss", default="val/loss", help="key of the validation loss (default: %(default)s)")
    panels.add_argument("--lr", default="lr", help="config key of the learning rate (default: %(default)s)")
    panels.add_argument("--batch-size", default="batch_size", help="config key of batch size (default: %(default)s)")
    panels.add_argument("--prefix", default="", help="prefix of the runs' WandbLogger (default: none)")
    panels.add_argument("--json", type=Path, metavar="DIR", help="write JSON files to DIR instead of saving to W&B")
    given = parser.parse_args(arguments)

    from lightning_probes.panels import report, workspace, write

    keys = {"loss": given.loss, "lr": given.lr, "batch_size": given.batch_size, "prefix": given.prefix}
    made = {make.__name__: make(given.entity, given.project, **keys) for make in (workspace, report)}
    if given.json is not None:
        for path in write(made, given.json):
            print(path)
        return
    for each in made.values():
        each.save()
        print(each.url)


if __name__ == "__main__":
    main()
