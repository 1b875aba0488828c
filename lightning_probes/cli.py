"""The command `lightning-probes`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_OF_CONNECT = ("other", "align", "path", "num_alphas", "num_samples")
_SECTIONS = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands.

    Args:
        arguments: Command line arguments; by default those of the process.
    """
    given = _parser().parse_args(arguments)
    given.run(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-probes", description="Panels, replays, and what to try first.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)
    panels = commands.add_parser("panels", help="save a W&B workspace and a report template for a project")
    panels.add_argument("--entity", required=True, help="the W&B user or team")
    panels.add_argument("--project", required=True, help="the W&B project")
    panels.add_argument("--loss", default="val/loss", help="key of the validation loss (default: %(default)s)")
    panels.add_argument("--lr", default="lr", help="config key of the learning rate (default: %(default)s)")
    panels.add_argument("--batch-size", default="batch_size", help="config key of batch size (default: %(default)s)")
    panels.add_argument("--prefix", default="", help="prefix of the runs' WandbLogger (default: none)")
    panels.add_argument("--json", type=Path, metavar="DIR", help="write JSON files to DIR instead of saving to W&B")
    panels.set_defaults(run=_panels)

    replay = commands.add_parser("replay", help="measure at the saved checkpoints of a run of LightningCLI")
    replay.add_argument("--checkpoints", nargs="+", required=True, help="paths, patterns or folders")
    replay.add_argument("--directory", type=Path, help="where to keep results (default: beside the checkpoints)")
    evaluate = commands.add_parser("evaluate", help="measure at one checkpoint of a run of LightningCLI")
    evaluate.add_argument("--checkpoint", required=True, help="its path")
    connect = commands.add_parser("connect", help="measure between two checkpoints of runs of LightningCLI")
    connect.add_argument("one", metavar="A.ckpt", help="checkpoint of one run")
    connect.add_argument(
        "other", metavar="B.ckpt", help="checkpoint of the other run, or wandb:entity/project/name:alias"
    )
    connect.add_argument("--align", choices=("weights", "activations"), help="match the units of the other run, too")
    connect.add_argument("--path", choices=("bezier", "string"), help="also look for a path of low loss")
    connect.add_argument("--num-alphas", type=int, metavar="N", help="points on the line (default: 11)")
    connect.add_argument("--num-samples", type=int, metavar="N", help="samples of each probe set (default: 512)")
    for command in (replay, evaluate, connect):
        with_probes = "" if command is connect else ", which lists probes"
        command.add_argument("--config", type=Path, required=True, help=f"config.yaml of the run{with_probes}")
        command.add_argument("--model", help="class of the model, such as project.Model, if the config has none")
        command.add_argument("--data", help="class of the data module, if the config has none")
        command.add_argument("--log", action="store_true", help="also log to the config's loggers: set a new run there")
        command.set_defaults(run=_connect if command is connect else _replay, error=command.error)
    _add_portfolio(commands)
    return parser


def _add_portfolio(commands: Any) -> None:
    command = commands.add_parser("portfolio", help="choose the configurations to try first, from finished runs")
    command.add_argument("--entity", help="the W&B user or team that has the runs")
    command.add_argument("--project", help="the W&B project that has the runs")
    command.add_argument("--csv", type=Path, metavar="FILE", help="a file that has the runs, instead of W&B")
    command.add_argument("--task", required=True, metavar="KEY", help="config key of the task, such as dataset")
    command.add_argument("--metric", default="val/loss", metavar="KEY", help="what to choose by (default: %(default)s)")
    command.add_argument("--test-metric", metavar="KEY", help="what to judge by on a task that is left out")
    command.add_argument("--keys", required=True, metavar="KEY,…", help="config keys, as lr or as lr=model.lr")
    command.add_argument("--size", type=int, default=8, metavar="N", help="most configurations (default: %(default)s)")
    command.add_argument("--seed", type=int, metavar="N", help="choose at random among equals (default: the first)")
    command.add_argument("--budget", metavar="KEY", help="leave out runs that went less far by this key, such as epoch")
    direction = command.add_mutually_exclusive_group()
    direction.add_argument("--minimize", action="store_true", default=None, help="lower is better (default)")
    direction.add_argument("--maximize", dest="minimize", action="store_false", help="higher is better")
    command.add_argument("--out", type=Path, metavar="DIR", help="write the configurations to DIR/0.yaml, …")
    command.add_argument("--sweep", type=Path, metavar="FILE", help="also write a sweep over these files")
    command.add_argument("--program", default="train.py", help="the sweep's LightningCLI (default: %(default)s)")
    command.add_argument("--base", metavar="FILE", help="a config that all runs of the sweep share")
    command.add_argument(
        "--halving", type=int, metavar="N", help="end bad runs early; whole ones log the metric N times"
    )
    command.add_argument("--force", action="store_true", help="replace files that are there")
    command.set_defaults(run=_portfolio, error=command.error)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from lightning_probes.probing.run.settings import version_of

        print(f"lightning-probes {version_of('lightning-probes')}")
        parser.exit()


def _panels(given: argparse.Namespace) -> None:
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


def _replay(given: argparse.Namespace) -> None:
    from lightning_probes.probing.probe import Probe
    from lightning_probes.probing.run.trainer import TrainerRun
    from lightning_probes.replay import replay

    project = _project(given)
    callbacks = TrainerRun(project.trainer, project.model).callbacks
    probes = [callback for callback in callbacks if isinstance(callback, Probe)]
    if not probes:
        given.error(f"{given.config} has no probe in trainer.callbacks: add one, such as lightning_probes.FisherTrace")
    checkpoints = [given.checkpoint] if given.command == "evaluate" else given.checkpoints
    replay(
        probes, project.model, checkpoints, project.datamodule or project.model, trainer=project.trainer,
        directory=None if given.command == "evaluate" else given.directory, keep=given.command == "replay",
    )  # fmt: skip
    _show(probes)


def _connect(given: argparse.Namespace) -> None:
    from lightning_probes import AtFitEnd, ModeConnectivity
    from lightning_probes.probing.constructor import arguments_of
    from lightning_probes.probing.run.trainer import TrainerRun
    from lightning_probes.replay import replay

    project = _project(given)
    callbacks = TrainerRun(project.trainer, project.model).callbacks
    configured = [callback for callback in callbacks if isinstance(callback, ModeConnectivity)]
    asked = {name: value for name in _OF_CONNECT if (value := getattr(given, name)) is not None}
    arguments = {**(arguments_of(configured[0]) if configured else {}), **asked, "schedule": AtFitEnd()}
    probe = ModeConnectivity(**arguments)
    data = project.datamodule or project.model
    replay([probe], project.model, [given.one], data, trainer=project.trainer, keep=False)
    _show([probe])


def _portfolio(given: argparse.Namespace) -> None:
    from lightning_probes.studies import portfolio

    if (given.csv is None) == (None in (given.entity, given.project)):
        given.error("runs come from W&B or from a file: pass both --entity and --project, or --csv")
    if given.sweep is not None and given.out is None:
        given.error("a sweep needs the files of the configurations: pass --out, such as --out portfolio")
    keys = dict(key.split("=", 1) if "=" in key else (key, key) for key in given.keys.split(","))
    runs = given.csv or f"{given.entity}/{given.project}"
    try:
        with warnings.catch_warnings(record=True) as left_out:
            warnings.simplefilter("always")
            chosen = portfolio(
                runs, task=given.task, metric=given.metric, configs=keys, k=given.size, minimize=given.minimize,
                test_metric=given.test_metric, budget=given.budget, seed=given.seed,
            )  # fmt: skip
        for warning in left_out:
            print(f"note: {warning.message}", file=sys.stderr)
        print(chosen)
        if given.out is not None:
            written = chosen.write(
                given.out, given.sweep, program=given.program, base=given.base, halving=given.halving,
                project=given.project, force=given.force,
            )  # fmt: skip
            print("", *written, sep="\n")
    except (ValueError, FileExistsError) as error:
        given.error(str(error))


def _show(probes: Sequence[Any]) -> None:
    for row in sorted((row for probe in probes for row in probe.history), key=lambda row: row["step"]):
        print(f"step {int(row['step'])}")
        for key, value in row.items():
            if "/" in key:
                print(f"{key} {value:.8g}")


def _project(given: argparse.Namespace) -> Any:
    """The model, the data and the Trainer of a saved config, as LightningCLI builds them."""
    import yaml  # type: ignore[import-untyped]
    from lightning.pytorch.cli import LightningCLI

    sys.path.insert(0, os.getcwd())  # where the project's own modules are
    content = yaml.safe_load(given.config.read_text())
    config = {name: content[name] for name in _SECTIONS if content.get(name) is not None}
    classes = {name: _class(given, name, config.get(name)) for name in ("model", "data")}
    if not given.log:
        config["trainer"] = {**config.get("trainer", {}), "logger": False}
    with warnings.catch_warnings():  # that this process has arguments of its own, too
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        return LightningCLI(
            classes["model"], classes["data"], save_config_callback=None, run=False, args=config,
            subclass_mode_model=classes["model"] is None, subclass_mode_data=classes["data"] is None,
            auto_configure_optimizers="optimizer" in config,
        )  # fmt: skip


def _class(given: argparse.Namespace, name: str, section: Any) -> Any:
    """The class that a section of the config configures; None if the section names it itself, or is missing."""
    path = getattr(given, name)
    if path is not None:
        module, _, attribute = path.rpartition(".")
        return getattr(importlib.import_module(module), attribute)
    if name == "model" and "class_path" not in (section or {}):
        given.error(f"{given.config} does not name the class of the model: pass --model, such as --model project.Model")
    if name == "data" and section and "class_path" not in section:
        given.error(f"{given.config} does not name the class of the data: pass --data, such as --data project.Data")
    return None


if __name__ == "__main__":
    main()
