"""The isolations of a measurement, each one taken out: what probes would do to training without it.

Each is a context manager that patches the package while it lasts. A row of the matrix names the one it is about, and is
seen to fail when that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from multiprocessing.sharedctypes import SynchronizedBase
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_probes import Probe
from lightning_probes.callbacks.curvature import sharpness
from lightning_probes.probing import scheduled
from lightning_probes.probing.data import drawing, loaders
from lightning_probes.probing.isolation import quiet, twin
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.run import runner
from lightning_probes.probing.view import ModelView


@contextmanager
def generators() -> Iterator[None]:
    """Random generators are not put back."""
    with patch.object(quiet, "isolated_rng", nullcontext), patch.object(drawing, "isolated_rng", nullcontext):
        yield


@contextmanager
def samples() -> Iterator[None]:
    """Samples are taken from the user's own loader, rather than from copies of its parts."""

    def own(source: Any) -> Iterator[Any]:
        batches = iter(source.source if isinstance(source, loaders.Iterated) else source)
        return islice(batches, 3)  # after a whole epoch a stream may be where it was

    read = patch.object(drawing, "read_source", lambda source, cutting: loaders._take(own(source), cutting))
    with read, patch.object(runner, "kept", lambda source, places=(): (source, [*places])):
        yield


@contextmanager
def module() -> Iterator[None]:
    """Passes run on the user's own module as it is, silenced while they last."""
    with _own_module(_silence, _unsilence):
        yield


@contextmanager
def modes() -> Iterator[None]:
    """Passes run on the user's own module, switched to evaluation and back as a whole."""

    def before(module: Any) -> None:
        _silence(module)
        module.eval()

    def after(module: Any) -> None:
        _unsilence(module)
        module.train().requires_grad_(True)

    with _own_module(before, after):
        yield


@contextmanager
def parameters() -> Iterator[None]:
    """The user's parameters are moved in place for a pass, and moved back: what is left is rounding, and unnoticed."""
    original = ModelView.loss

    def loss(view: ModelView, params: Any, batch: Any) -> Any:
        result = original(view, params, batch)
        for parameter in view.run.module.parameters():
            parameter.data.add_(100.0).sub_(100.0)
        return result

    with patch.object(ModelView, "loss", loss), patch.object(quiet, "unwritten", lambda *_: nullcontext()):
        yield


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients are taken by `backward`, and stay on the user's parameters."""
    original = ModelView.loss

    def loss(view: ModelView, params: Any, batch: Any) -> Any:
        if not torch._C._functorch.peek_interpreter_stack():
            twins = dict(view.module.named_parameters())
            with torch.enable_grad():
                original(replace(view, gradients=None), {}, batch).backward()
            for name, parameter in view.run.module.named_parameters():
                gradient, twins[name].grad = twins[name].grad, None
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return original(view, params, batch)

    with patch.object(ModelView, "loss", loss):
        yield


@contextmanager
def log() -> Iterator[None]:
    """What a replayed step logs is logged, as what the step itself logs."""
    use = Twin.use

    def in_the_step(self: Twin, params: Any) -> None:
        use(self, params)
        vars(self.module).update(_current_fx_name="training_step", _trainer=vars(self.trainer)["_viewed"])

    with patch.object(twin, "_silence", lambda _: None), patch.object(Twin, "use", in_the_step):
        yield


@contextmanager
def trainer() -> Iterator[None]:
    """The twin has the Trainer itself, rather than a view of it."""
    use = Twin.use

    def attached(self: Twin, params: Any) -> None:
        use(self, params)
        for child in self.module.modules():
            if hasattr(child, "_trainer"):
                child._trainer = vars(self.trainer)["_viewed"]

    with patch.object(Twin, "use", attached):
        yield


@contextmanager
def surroundings() -> Iterator[None]:
    """The twin has data, samplers, callbacks and what has other owners itself, rather than copies."""
    original, theirs = twin.stand_in, (Dataset, DataLoader, Sampler, Callback, SynchronizedBase)

    def stand_in(value: Any, copier: Any) -> Any:
        is_theirs = isinstance(value, theirs) or hasattr(type(value), "__del__")
        return value if is_theirs else original(value, copier)

    with patch.object(twin, "stand_in", stand_in):
        yield


@contextmanager
def precision() -> Iterator[None]:
    """The precision that a pass needs stays on."""
    original, entered = ModelView._precision, ExitStack()

    @contextmanager
    def left_on(view: ModelView) -> Iterator[None]:
        entered.enter_context(original(view))
        yield

    with entered, patch.object(ModelView, "_precision", left_on):
        yield


@contextmanager
def kernels() -> Iterator[None]:
    """The kernels that can be differentiated twice stay on."""
    original, entered = sharpness.double_backward_kernels, ExitStack()

    @contextmanager
    def left_on() -> Iterator[None]:
        entered.enter_context(original())
        yield

    with entered, patch.object(sharpness, "double_backward_kernels", left_on):
        yield


@contextmanager
def compiler() -> Iterator[None]:
    """Compiled code stays switched off."""
    original = torch.compiler.set_stance

    def left_on(stance: str) -> Any:
        original(stance)
        return nullcontext()

    try:
        with patch.object(torch.compiler, "set_stance", left_on):
            yield
    finally:
        original("default")


@contextmanager
def watching() -> Iterator[None]:
    """The Trainer's `save_checkpoint` stays wrapped after the fit."""
    original = scheduled.watch_checkpoints

    def left_on(*arguments: Any) -> Callable[[], None]:
        original(*arguments)
        return lambda: None

    with patch.object(scheduled, "watch_checkpoints", left_on):
        yield


@contextmanager
def stage() -> Iterator[None]:
    """Every stage is taken for a fit."""
    original = Probe.setup

    def setup(self: Probe, trainer: Any, pl_module: Any, stage: str) -> None:
        original(self, trainer, pl_module, "fit")

    with patch.object(Probe, "setup", setup):
        yield


ISOLATIONS = {
    taken_out.__name__: taken_out
    for taken_out in (
        generators, samples, module, modes, parameters, gradients, log, trainer, surroundings, precision, kernels,
        compiler, watching, stage,
    )
}  # fmt: skip


@contextmanager
def _own_module(before: Callable[[Any], None], after: Callable[[Any], None]) -> Iterator[None]:
    def init(self: Any, module: nn.Module, buffers: Any = None) -> None:
        self.module = module
        self.trainer = getattr(module, "_trainer", None)
        self.hidden_parameters = {}
        self.trained = frozenset(name for name, _ in module.named_modules())

    with (
        patch.object(Twin, "__init__", init),
        patch.object(Twin, "use", lambda self, params: before(self.module)),
        patch.object(Twin, "forget", lambda self: after(self.module)),
    ):
        yield


def _silence(module: Any) -> None:
    module.log = module.log_dict = lambda *_, **__: None


def _unsilence(module: Any) -> None:
    del module.log, module.log_dict
