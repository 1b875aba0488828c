"""The places along the depth of a model at which gradients are measured: blocks of a residual stream, or layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.callbacks.flow.stream import find_blocks, run_with_graph
from lightning_probes.functional.flow.depth_gradients import DepthGradients
from lightning_probes.functional.tracing.additions import Course, follow_additions, sample_dim
from lightning_probes.functional.tracing.functions import FunctionCall, tensors, watch_functions
from lightning_probes.probing.checks import blaming_derivatives, no_gradient_of_loss
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.layers import select_layers, watch_layers
from lightning_probes.probing.view import ModelView


@dataclass(frozen=True)
class Depth:
    """Places along the depth.

    Attributes:
        names: Their names, in forward order.
        course: The residual additions whose results they are; None if they are outputs of layers.
    """

    names: Sequence[str]
    course: Course | None = None

    def look(self, view: ModelView, batch: MicroBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Norms of each sample's activation and gradient, by name of the place. Cost: one forward and backward pass."""
        places, loss = self._run(view, batch)
        gradients = _gradients(places, loss * batch.size)
        nothing = 0 * loss.detach()  # NaN if the loss is not finite
        return {
            name: (norms, gradients.get(name, nothing.to(norms).expand(len(norms))))
            for name, norms in places.norms.items()
        }

    def reached(self, view: ModelView, batch: MicroBatch) -> list[str]:
        """The names of the places that gradients of the loss reach."""
        places, loss = self._run(view, batch)
        gradients = _gradients(places, loss)
        return [name for name in self.names if name in gradients]

    def _run(self, view: ModelView, batch: MicroBatch) -> tuple[DepthGradients, Tensor]:
        losses: list[Tensor] = []

        def run() -> None:
            losses.append(run_with_graph(view, batch))

        if self.course is not None:
            _, places = follow_additions(view.module, batch.size, run, lambda: DepthGradients(batch.size), self.course)
            assert isinstance(places, DepthGradients)
            return places, losses[-1]
        places, names = DepthGradients(batch.size), frozenset(self.names)

        def on_output(name: str, output: Any) -> None:
            found = _with_samples(output, batch.size) if name in names else None
            if found is not None:
                places.add(name, found)

        with watch_layers(view.module, on_output):
            run()
        return places, losses[-1]


def find_depth(view: ModelView, layers: Literal["auto"] | str | Sequence[str]) -> Depth:
    """Choose the places by a pass over the first micro-batch; the same in every process.

    Args:
        view: The model.
        layers: "auto" takes the results of residual additions, or if there are fewer than two the outputs of layers
            with weights, but for the last; or names and globs of layers.

    Raises:
        MisconfigurationException: If gradients reach fewer than two places, or not one that is named.
    """
    batch = view.probe_set().first
    if layers != "auto":
        ran: list[str] = []
        with watch_layers(view.module, lambda name, _: ran.append(name)):
            run_with_graph(view, batch)
        named = Depth(select_layers(layers, ran))
        missing = next(iter(set(named.names) - set(named.reached(view, batch))), None)
        if missing is not None:
            raise MisconfigurationException(
                f"layers: {missing!r} returns no tensor with one row per sample through which gradients of the loss "
                "pass: leave it out"
            )
        places = named
    else:
        places = _automatic(view, batch)
    if len(places.names) < 2:
        raise MisconfigurationException(
            f"gradients of the loss reach {len(places.names)} layers of {type(view.module).__name__} with one row per "
            "sample, and this probe compares at least two: pass other layers=, loss_fn= that runs the layers on the "
            "batch, or use_reentrant=False to activation checkpoints, which hide the layers in them"
        )
    return view.processes.from_first(places)


def _automatic(view: ModelView, batch: MicroBatch) -> Depth:
    course = find_blocks(view)
    if len(course.additions) > 1:
        blocks = Depth([addition.name for addition in course.additions], course)
        reached = view.processes.from_first(blocks.reached(view, batch))  # then all take the same way from here
        if len(reached) > 1:
            return Depth(reached, course)
    reached = Depth(_with_weights(view, batch)).reached(view, batch)
    return Depth(reached[:-1] if len(reached) > 2 else reached)  # the last one is the head, of another width


def _with_weights(view: ModelView, batch: MicroBatch) -> list[str]:
    """Names of the layers with weights; a normalisation that reads a layer's output stands for this layer."""
    chosen: dict[str, Tensor | None] = {}
    entered: list[tuple[nn.Module, list[Tensor]]] = []

    def on_call(call: FunctionCall) -> Any:
        return call.run()

    def on_enter(layer: str, module: nn.Module, inputs: Any) -> None:
        entered.append((module, tensors(inputs)))

    def on_return(layer: str, output: Any) -> None:
        module, inputs = entered.pop()
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if any(parameter.ndim > 1 for parameter in own) or hasattr(module, "parametrizations"):
            chosen[layer] = _with_samples(output, batch.size)
        elif own:
            read = [name for name, tensor in chosen.items() if any(tensor is each for each in inputs)]
            for name in read:
                del chosen[name]
            if read:
                chosen[layer] = _with_samples(output, batch.size)

    with watch_functions(view.module, on_call, on_enter, on_return):
        run_with_graph(view, batch)
    return [name for name, output in chosen.items() if output is not None and name]


def _with_samples(output: Any, samples: int) -> Tensor | None:
    """The first tensor of a layer's output that has samples."""
    for tensor in tensors(output):
        if tensor.is_floating_point() and not tensor.is_nested and sample_dim(tensor, samples) is not None:
            return tensor
    return None


def _gradients(places: DepthGradients, total: Tensor) -> dict[str, Tensor]:
    with blaming_derivatives(no_gradient_of_loss):
        return places.gradients(total)
