"""The twin: a private copy of the user's module that a probe can run, hook and reseed without affecting training.

Replaying `training_step` on the module itself would change metric states, counters, lists of outputs and logged values.
The twin has its own copies of these. It shares the storage of the parameters, sees the Trainer through a read-only
view, and undoes the changes of each pass.

Objects in global variables and objects that can't be copied are not protected; see `stand_ins`. Data too large to copy
is shared, and a write to it is an error.
"""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import CellType, SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_probes.probing.isolation.copying import LONG, Copier, bytes_of
from lightning_probes.probing.isolation.depth import CopyError
from lightning_probes.probing.isolation.initialised import check_initialised
from lightning_probes.probing.isolation.snapshot import Snapshot
from lightning_probes.probing.isolation.stand_ins import PART, ignore, last_resort, stand_in
from lightning_probes.probing.isolation.trainer_view import TrainerView
from lightning_probes.probing.isolation.writes import watch_data, written
from lightning_probes.probing.origin import comes_from

# Bytes of the largest tensor or array in data that is copied for an event, and of all of them together.
_LARGEST = 2**25
_BUDGET = 2**28

# Attributes of a Trainer and its strategy that hold the model, wrapped or not.
_MODELS = frozenset({"model", "lightning_module", "_model", "_lightning_module"})

Refer: TypeAlias = Callable[[Any], None]
Place: TypeAlias = tuple[dict[str, Any], str]
Weak: TypeAlias = weakref.ref[Callable[[Any, str], Any]]


@contextmanager
def _without_collections() -> Iterator[None]:
    """Turn garbage collection off: thousands of new objects trigger it, and it visits all objects of the process."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Twin:
    """A copy of a module in the module's own eval mode, on the same parameter storage.

    Args:
        module: The user's module. It is never changed.
        buffers: Values for the buffers of the copy, by name; other buffers are copied.
        as_it_is: Leave the copy in the present mode of the module instead.

    Attributes:
        module: The copy. Hooks, mode switches and passes on it do not affect the original.
        trainer: The copy's view of the Trainer; None without one.
        trained: Names of the submodules in training mode (a BatchNorm that the user keeps in eval mode is frozen and
            not included). All submodules if the whole module was in eval mode.
        hidden_parameters: Parameters found outside `module.parameters()`, by their path.

    Raises:
        ValueError: If a lazy module has not run its first batch yet.
        CopyError: If a submodule can't be copied, such as a TorchScript module.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> twin = Twin(module)
        >>> twin.module.weight.data_ptr() == module.weight.data_ptr(), twin.module.training, module.training
        (True, False, True)
    """

    @torch.inference_mode(False)
    @_without_collections()
    def __init__(self, module: nn.Module, buffers: Mapping[str, Tensor] | None = None, as_it_is: bool = False) -> None:
        check_initialised(module)
        parameters = dict(module.named_parameters())
        aliases = {name: _alias(parameter) for name, parameter in parameters.items()}
        memo: dict[int, Any] = {id(parameter): aliases[name] for name, parameter in parameters.items()}
        # By weak references, so that a twin and its buffers are freed with its last user.
        read: Weak = weakref.WeakMethod(self._read)
        double: Weak = weakref.WeakMethod(self._double)
        self._copier = Copier(
            memo, stand_in=partial(_stand_in, read=read), otherwise=partial(_otherwise, module), largest=_LARGEST,
            budget=_BUDGET, later=partial(_call, double),
        )  # fmt: skip
        self._snapshot: Snapshot | None = None
        self._seen: dict[tuple[int, str], Any] = {}
        trainer = getattr(module, "_trainer", None)
        self.trainer = None if trainer is None else TrainerView(trainer, read)
        if trainer is not None:
            memo[id(trainer)] = self.trainer
            self._copier.made.append((trainer, self.trainer))
        for name, given in (buffers or {}).items():
            own = module.get_buffer(name)
            if own.requires_grad and own.is_leaf:
                given = given.detach().clone().requires_grad_()
            memo[id(own)] = given.detach().clone().requires_grad_(given.requires_grad)
            self._copier.made.append((given, memo[id(own)]))

        self._shared: list[tuple[str, Tensor, int]] = []
        self.module: nn.Module = self._double(module, "")
        self.hidden_parameters = self._copier.hidden_parameters
        trained = {name: child.training for name, child in module.named_modules()}
        self.trained = frozenset(name for name in trained if trained[name]) or frozenset(trained)
        children = list(self.module.modules())
        for child in children:
            _silence(child)
            if isinstance(child, nn.SyncBatchNorm):
                child.__class__ = _LocalBatchNorm  # type: ignore[assignment]
            if _has(child, "_trainer"):  # a LightningModule loses it when it is copied
                vars(child)["_trainer"] = self.trainer
        if not as_it_is:
            _eval_mode(self.module)
        # cuDNN changes the memory layout of the weights of recurrent layers, which looks like a write.
        laid_out = {id(p) for child in children if isinstance(child, nn.RNNBase) for p in child.parameters()}
        self._aliases = {
            name: (p, p.requires_grad, None if id(p) in laid_out else p._version) for name, p in aliases.items()
        }
        self._snapshot = Snapshot(self._copier.made)
        names = {id(parameter): name for name, parameter in aliases.items()}
        self._references: dict[str, list[Refer]] = defaultdict(list)
        for refer, name in _references(self._copier.made, names, frozenset(map(type, aliases.values()))):
            self._references[name].append(refer)
        names |= {id(buffer): name for name, buffer in self.module.named_buffers()}
        self._places: dict[str, list[Place]] = defaultdict(list)
        for place, name in _places(children, names):
            self._places[name].append(place)
        self._replaced: list[tuple[Place, Tensor]] = []

    @property
    def datamodule(self) -> Any:
        """The copy of the Trainer's data module; None without one."""
        return getattr(self.trainer, "datamodule", None)

    def use(self, params: Mapping[str, Tensor]) -> None:
        """Replace parameters and buffers of the module by these tensors until `forget`.

        References in lists, dicts, attributes and closures are replaced too, unlike in `torch.func.functional_call`.
        Otherwise a penalty on `self.penalised[0]` would use the old weights.

        Args:
            params: Tensors by name of the parameter or buffer that they replace; other names are ignored.
        """
        for name, tensor in params.items():
            for place in self._places.get(name, ()):
                owner, key = place
                self._replaced.append((place, owner[key]))
                owner[key] = tensor
            for refer in self._references.get(name, ()):
                refer(tensor)

    def forget(self) -> None:
        """Undo the changes of a pass: attributes, containers, buffers and other tensors.

        Raises:
            WrittenError: If the pass wrote to a parameter, or to another tensor that is shared.
        """
        for (owner, key), tensor in self._replaced:
            owner[key] = tensor
        self._replaced.clear()
        assert self._snapshot is not None
        self._snapshot.restore()
        for name, (parameter, trainable, version) in self._aliases.items():
            if version is not None and parameter._version != version:
                what = f"parameter {name!r}"
                raise written(what)
            if parameter.requires_grad != trainable:
                parameter.requires_grad_(trainable)
            if parameter.grad is not None:
                parameter.grad = None
            if parameter._backward_hooks:
                parameter._backward_hooks = None
        for what, tensor, version in self._shared:
            if tensor._version != version:
                raise written(what)

    def _read(self, part: Any, name: str) -> Any:
        """An attribute of the Trainer, or of a part of it, as the twin sees it; each copy is made once."""
        key = (id(part), name)
        if key in self._seen:
            return self._seen[key]
        value = getattr(part, name)
        if name in _MODELS and value is not None:  # also if the Trainer has wrapped it
            return getattr(self, "module", value)
        double = self._double(value, f"trainer.{name}")
        if double is not value:
            self._seen[key] = double
        return double

    def _double(self, value: Any, path: str) -> Any:
        """The twin's copy of an object that a pass reads."""
        double, seen = self._copier(value, path), len(self._shared)
        for place, tensor, version in self._copier.shared_tensors[seen:]:
            what = f"a tensor of {bytes_of(tensor) / 1e6:.0f} MB at {place!r}, too large to copy"
            watch_data(what, tensor)
            self._shared.append((what, tensor, version))
        if self._snapshot is not None:
            self._snapshot.catch_up()
        return double


def _call(method: Weak, value: Any, path: str) -> Any:
    called = method()
    assert called is not None  # the twin is gone: its parts must not return the originals
    return called(value, path)


def _stand_in(value: Any, copier: Copier, read: Weak) -> Any:
    found = stand_in(value, copier)
    if found is not PART:
        return found
    view = TrainerView(value, read)
    copier.made.append((value, view))
    return view


def _otherwise(module: nn.Module, value: Any, path: str, error: Exception) -> Any:
    # Sharing a submodule, or a module that is trained, would run the original.
    runs = isinstance(value, nn.Module) and (
        any(child is value for child in module.modules()) or any(p.requires_grad for p in value.parameters())
    )
    if not runs:
        return last_resort(value, path)
    scripted = isinstance(value, torch.jit.ScriptModule)
    remedy = "script or trace it after training" if scripted else "let its __getstate__ and __setstate__ work"
    raise CopyError(
        f"the {type(value).__name__}{f' at {path!r}' if path else ''} can't be doubled ({type(error).__name__}: "
        f"{error}): {remedy}, or pass on_error='warn' to train without this probe"
    ) from error


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    alias = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    vars(alias).update(vars(parameter))
    return alias


def _references(
    made: Iterable[tuple[Any, Any]], names: Mapping[int, str], kinds: frozenset[type]
) -> Iterator[tuple[Refer, str]]:
    """References to parameters outside their modules: a function that sets each reference, and the parameter's name."""
    for _, copied in made:
        if type(copied) in (dict, set) and not copied:  # frequent
            continue
        if isinstance(copied, CellType):
            if id(copied.cell_contents) in names:
                yield partial(setattr, copied, "cell_contents"), names[id(copied.cell_contents)]
            continue
        containers = [copied] if isinstance(copied, (list, deque, dict)) and len(copied) <= LONG else []
        containers += [vars(copied)] if hasattr(copied, "__dict__") else []
        for container in containers:
            # By the methods of the base class, because a config may have entries with the same names.
            if kinds.isdisjoint(map(type, dict.values(container) if isinstance(container, dict) else container)):
                continue
            for key, item in dict.items(container) if isinstance(container, dict) else enumerate(container):
                if id(item) in names:
                    yield partial(container.__setitem__, key), names[id(item)]


def _places(modules: Iterable[nn.Module], names: Mapping[int, str]) -> Iterator[tuple[Place, str]]:
    """The places of parameters and buffers in modules, with their names; tied ones have several places."""
    for child in modules:
        for owner in (child._parameters, child._buffers):
            for key, tensor in owner.items():
                if id(tensor) in names:
                    yield (owner, key), names[id(tensor)]


class _LocalBatchNorm(_BatchNorm):
    """Replaces `nn.SyncBatchNorm`, which would wait for processes without such a batch."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _silence(module: Any) -> None:
    """Keep a submodule from logging, and from waiting for other processes."""
    if _has(module, "log") and _has(module, "log_dict"):
        module.log = module.log_dict = module.print = ignore
    if _has(module, "sync_on_compute") and _has(module, "dist_sync_on_step"):
        module.sync_on_compute = module.dist_sync_on_step = False


def _has(module: Any, name: str) -> bool:
    """`hasattr` without calling a module's `__getattr__`, which is slow for missing attributes."""
    return name in vars(module) or hasattr(type(module), name)


def _eval_mode(module: Any) -> None:
    """Set the module's own evaluation mode: some modules rescale outputs or switch targets in the hook for it."""
    own = getattr(type(module), "on_validation_model_eval", None)
    if own is None or comes_from(own):
        module.eval()
    elif module._trainer is None:  # Lightning's version of the hook may be called, and needs the Trainer's model
        module._trainer = SimpleNamespace(model=module, lightning_module=module)
        own(module)
        module._trainer = None
    else:
        own(module)
