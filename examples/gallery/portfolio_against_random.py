"""A portfolio finds a good configuration in fewer runs than random search.

Configurations that were good on other tasks, chosen so that they complement each other, are tried first on a new task
(Feurer et al. 2022, arXiv:2007.04074). Twelve small tasks on MNIST-1D (digits, mirrored digits, noisy labels and
positions, with little data, more data, and more noise) are each trained in 24 configurations of learning rate, weight
decay and shift augmentation. Each task is left out once: `portfolio` chooses from the others, validation error picks
among the configurations tried, and test error judges.

python examples/gallery/portfolio_against_random.py --out pictures     # under a minute of one CPU core
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure
from mnist1d.data import get_dataset_args, get_templates, make_dataset
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION
from lightning_probes.studies import Portfolio, portfolio
from lightning_probes.studies.greedy import normalised

KINDS = ("digits", "mirrored", "noisy labels", "positions")
SIZES = {"little data": (300, 1.0), "more data": (1500, 1.0), "more noise": (700, 3.0)}  # samples, scale of the noise
CONFIGS = [*itertools.product((0.003, 0.01, 0.03, 0.1), (0.0, 3e-3), (0, 2, 6))]  # lr, weight decay, largest shift
HELD_OUT = 500  # samples to choose by, and as many to judge by


def task(kind: str, size: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Signals and labels to train on, to choose by and to judge by."""
    samples, noise = SIZES[size]
    draws = torch.Generator().manual_seed(seed)
    arguments, templates = get_dataset_args(), get_templates()
    arguments.num_samples, arguments.train_split, arguments.seed = samples + 2 * HELD_OUT, 1 - 1e-9, seed
    arguments.iid_noise_scale *= noise
    arguments.corr_noise_scale *= noise
    if kind == "mirrored":
        templates["x"] = templates["x"][:, ::-1].copy()
    if kind == "positions":
        arguments.max_translation = 4
    data = make_dataset(arguments, templates)
    signals, labels = torch.tensor(data["x"]).float(), torch.tensor(data["y"]).long()
    if kind == "positions":
        labels = torch.randint(4, labels.shape, generator=draws)
        signals = shifted(signals, 10 * labels)
    if kind == "noisy labels":
        wrong = torch.rand(len(labels), generator=draws) < 0.3
        wrong[-2 * HELD_OUT :] = False
        labels = torch.where(wrong, torch.randint(10, labels.shape, generator=draws), labels)
    parts = [len(signals) - 2 * HELD_OUT, HELD_OUT, HELD_OUT]
    return list(zip(signals.split(parts), labels.split(parts), strict=True))


def shifted(signals: Tensor, by: Tensor) -> Tensor:
    return signals.gather(-1, (torch.arange(signals.shape[-1]) - by[..., None]) % signals.shape[-1])


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)), nn.Conv1d(1, 12, 5, 2, 2), nn.ReLU(), nn.Conv1d(12, 12, 3, 2, 1), nn.ReLU(),
        nn.Conv1d(12, 12, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 10),
    )  # fmt: skip


def errors(
    parts: list[tuple[Tensor, Tensor]], configs: list[tuple[float, float, int]], steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Train one network for each configuration, all at once, from one initialisation; errors to choose and judge by."""
    torch.manual_seed(0)
    model = network()
    parameters, _ = stack_module_state([model] * len(configs))
    momentum = {name: torch.zeros_like(value) for name, value in parameters.items()}
    rate, decay, shift = map(torch.tensor, zip(*configs, strict=True))
    draws = torch.Generator().manual_seed(seed)

    def loss(each: dict[str, Tensor], signals: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, each, signals), labels)

    gradients = vmap(grad(loss), in_dims=(0, 0, None))
    signals, labels = parts[0]
    for step in range(steps):
        batch = torch.randint(len(signals), (32,), generator=draws)
        far = torch.rand(32, generator=draws) * 2 - 1
        moved = shifted(signals[batch].expand(len(configs), -1, -1), (far * (shift[:, None] + 0.49)).round().long())
        scale = rate * (1 + np.cos(np.pi * step / steps)) / 2
        with torch.no_grad():
            for name, gradient in gradients(parameters, moved, labels[batch]).items():
                value, ones = parameters[name], [1] * (gradient.ndim - 1)
                momentum[name] = 0.9 * momentum[name] + gradient + decay.view(-1, *ones) * value
                parameters[name] = value - scale.view(-1, *ones) * momentum[name]
    predict = vmap(lambda each, signals: functional_call(model, each, signals).argmax(-1), in_dims=(0, None))
    with torch.no_grad():
        validation, test = ((predict(parameters, x) != y).float().mean(1) for x, y in parts[1:])
    return validation, test


def finished_runs(fast: bool) -> list[dict[str, object]]:
    """One row a run, as W&B would list them."""
    kinds, sizes, steps = (KINDS[:3], [*SIZES][:2], 80) if fast else (KINDS, [*SIZES], 320)
    configs = CONFIGS[::3] + CONFIGS[2::3] if fast else CONFIGS
    rows: list[dict[str, object]] = []
    for seed, (kind, size) in enumerate(itertools.product(kinds, sizes)):
        validation, test = errors(task(kind, size, seed), configs, steps, seed)
        for (lr, decay, shift), chosen_by, judged_by in zip(configs, validation.tolist(), test.tolist(), strict=True):
            config = {"task": f"{kind}, {size}", "lr": lr, "weight_decay": decay, "shift": shift}
            rows.append({**config, "val/error": chosen_by, "test/error": judged_by})
    return rows


def picture(chosen: Portfolio) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    over_k, matrix = canvas.subplots(1, 2, width_ratios=(1, 1.25))
    k = [each.k for each in chosen.held_out]
    for values, colour, label in (
        ([each.random for each in chosen.held_out], GREY, "random search"),
        ([each.average for each in chosen.held_out], BLUE, "best on average"),
        ([each.portfolio for each in chosen.held_out], VERMILLION, "portfolio"),
    ):
        over_k.plot(k, values, color=colour, marker="o", label=label)
    over_k.set(xlabel="configurations tried", ylim=(0, None), xticks=k)
    over_k.set_ylabel("test error (0 best configuration, 1 worst)")
    over_k.legend(frameon=False, fontsize=9)
    over_k.set_title("A task that was left out, mean of all", fontsize=11, loc="left")
    over_k.spines[["top", "right"]].set_visible(False)
    rest = [column for column in range(len(chosen.table.configs)) if column not in chosen.order]
    shown = normalised(chosen.table.losses)[:, [*chosen.order, *rest]]
    image = matrix.imshow(shown, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    matrix.axvline(len(chosen.order) - 0.5, color="white", linewidth=2)
    matrix.set_yticks(range(len(shown)), chosen.table.tasks, fontsize=7)
    matrix.set_xticks([])
    matrix.set_xlabel("configurations: the portfolio in order | the others")
    matrix.set_title("Validation error, scaled for each task", fontsize=11, loc="left")
    canvas.colorbar(image, ax=matrix)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train every configuration on every task, choose with each task left out, and compare with random search."""
    seed_everything(0, verbose=False)
    chosen = portfolio(
        finished_runs(fast), task="task", metric="val/error", test_metric="test/error",
        configs=["lr", "weight_decay", "shift"], k=4 if fast else 8,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    picture(chosen).savefig(out / "portfolio_against_random.png")
    few = next(each for each in chosen.held_out if each.k == (2 if fast else 4))
    print(
        f"scaled test error of a task that was left out, after {few.k} configurations: {few.portfolio:.3f} by the "
        f"portfolio, {few.random:.3f} by random search, below it on {few.better} of {len(chosen.table.tasks)} tasks"
    )
    assert few.portfolio < few.random


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer tasks, configurations and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
