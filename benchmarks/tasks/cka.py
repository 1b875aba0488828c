"""CKA of every layer with every layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, forward_pass
from lightning_probes import Heatmap, LayerCKA


def layers_of(work: Work, most: int = 50) -> list[str]:
    """Names in the network of modules that return one tensor with a row a sample, without repeats, in order."""
    names: list[str] = []
    seen: set[int] = set()
    kept = []
    net, inputs = work.net, work.batches[0][0]

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = output if isinstance(output, Tensor) else None
            if tensor is not None and len(tensor) == len(inputs) and tensor.data_ptr() not in seen:
                names.append(name)
                seen.add(tensor.data_ptr())
                kept.append(tensor)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in net.named_modules() if name]
    with torch.no_grad():
        net(inputs)
    for handle in handles:
        handle.remove()
    places = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [names[place] for place in places]


def ours(way: str, auto: bool = False) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        layers: Any = "auto" if auto else [f"net.{name}" for name in layers_of(work)]
        probe = LayerCKA(layers=layers, num_samples=work.samples, micro_batch_size=work.micro_batch_size)
        ready = Ready(probe, work, with_init=True)

        def run() -> Any:
            results = getattr(ready, way)()
            matrix = cast(Heatmap, results["cka/layers"])
            work.extras["layers"] = len(matrix.values)
            return None if auto else np.asarray(matrix.values)

        run()  # the first event also runs the initialisation
        return run

    return prepare


def torch_cka(work: Work) -> Run:
    from torch_cka import CKA

    layers, loader = layers_of(work), _loader(work)
    compared = CKA(work.net, work.net, "a", "b", layers, layers, device=str(next(work.net.parameters()).device))

    @torch.no_grad()
    def run() -> Any:
        compared.compare(loader, loader)
        return compared.export()["CKA"].numpy()

    return run


def ckatorch(work: Work) -> Run:
    from ckatorch import CKA

    layers = layers_of(work)
    argument = next(iter(inspect.signature(work.net.forward).parameters))  # it goes by the names of arguments
    loader: DataLoader[Any] = DataLoader(cast(Any, [{argument: x} for x, _ in work.batches]), batch_size=None)
    compared = CKA(work.net, work.net, layers=layers, device=str(next(work.net.parameters()).device))
    return lambda: compared(loader, epochs=1).cpu().numpy()


def pytorch_cka(work: Work) -> Run:
    from cka import compute_cka

    layers, loader = layers_of(work), _loader(work)
    return lambda: compute_cka(work.net, work.net, loader, layers=layers, progress=False)[0].cpu().numpy()


def _loader(work: Work) -> DataLoader[Any]:
    """The same batches for everybody."""
    return DataLoader(cast(Any, work.batches), batch_size=None)


def reference(work: Work) -> Any:
    """Unbiased HSIC of every pair by its definition, in double precision, from copies of the features."""
    layers = layers_of(work)
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            features[name] = output.detach().clone().flatten(1).double()

        return hook

    handles = [work.net.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    sums = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    with torch.no_grad():
        for inputs, _ in work.batches:
            work.net(inputs)
            n = len(inputs)
            grams = []
            for name in layers:
                centred = features[name] - features[name].mean(0)
                grams.append((centred @ centred.T).fill_diagonal_(0).cpu())
            for i, k in enumerate(grams):
                for j, l in enumerate(grams[: i + 1]):  # noqa: E741
                    value = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * k.sum(0) @ l.sum(0) / (n - 2)
                    sums[i, j] += value / (n - 3)  # times n, over n
    for handle in handles:
        handle.remove()
    sums = sums + sums.tril(-1).T
    norms = sums.diagonal().sqrt()
    return (sums / norms[:, None] / norms[None, :]).numpy()


def error(work: Work, value: Any, exact: Any) -> float:
    if value is None:
        return float("nan")
    if value.shape != exact.shape:
        raise ValueError(f"returned shape {value.shape}, not {exact.shape}")
    return float(np.abs(value - exact).max())


TASK = Task(
    name="cka",
    title="CKA, all layers with all layers",
    pass_name="forward",
    plain=forward_pass,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, auto layers": ours("event", auto=True),
        "torch-cka": torch_cka,
        "ckatorch": ckatorch,
        "pytorch-cka": pytorch_cka,
    },
    reference=reference,
    error=error,
    error_name="largest difference",
)
