"""How training reads logits and targets, inferred by comparing the likelihood of one batch with the training loss.

A reading is a likelihood with its choices, for example the class dimension and the ignored label.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_probes.functional.likelihood import Bernoulli, Categorical, Likelihood, LikelihoodName
from lightning_probes.functional.likelihood_candidates import Clues, candidates, smoothings_that_fit, training_losses
from lightning_probes.functional.wide import at_least_single, on_host
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.writes import is_written
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView

log = logging.getLogger(__name__)


def likelihood_of(
    view: ModelView,
    name: LikelihoodName,
    logits: Tensor,
    targets: Tensor | None,
    say: Speaker,
    carried: dict[str, Any],
    split: str | None = None,
) -> Likelihood:
    """The likelihood of a model's outputs, with the reading that the training loss uses.

    If there is a training loss, it is compared with the mean negative log-likelihood of the first micro-batch, for
    every possible reading. If not only the usual reading agrees, those that agree are compared again at other
    parameters.

    Args:
        view: The model.
        name: See `infer_likelihood`.
        logits: Outputs of the model on the first micro-batch.
        targets: The targets of these outputs.
        say: Reports a reading other than the usual one, and a loss with which no reading agrees.
        carried: See `Probe`. It keeps the reading, so that a run uses one reading throughout: one that agrees at the
            initialisation need not agree later.
        split: The probe set of that micro-batch; by default the first.

    Returns:
        The likelihood, which is the same in every process. Cost: one or two forward passes, in doubtful cases up to
        eight.

    Raises:
        ValueError: If no likelihood of that name fits, or if the outputs are probabilities; the message names
            `predict_fn`.
    """
    batch = view.probe_set(split).first
    clues = Clues.of(view.module)
    fitting = candidates(name, logits, targets, clues)
    usual, key = fitting[0], f"reading/{split or 'first'}"
    before = [reading for reading in fitting if _described(reading) == carried.get(key)]
    if before := view.processes.from_first(before):
        return before[0]
    point = _point(view, {}, batch) if targets is not None and view.has_loss() else None
    agreeing = [] if point is None else _agreeing(view, batch, point, fitting, clues)
    if not agreeing and isinstance(usual, Bernoulli) and _stays_within_zero_and_one(view, batch):
        raise ValueError(
            "the model's outputs are probabilities (they are between 0 and 1 for other parameters too), but logits are "
            "needed: set predict_fn= to return the input of the sigmoid"
        )
    if point is not None and not agreeing:
        say.warn(
            f"on one micro-batch the training loss is {float(point.loss):.5g}, but the mean negative log-likelihood of "
            f"the targets is {float(training_losses(usual, point.outputs, point.targets)[0]):.5g}. No choice of class "
            "dim, ignored label, class weights, label smoothing, and sum or mean makes them equal. If training uses "
            "another loss, or adds terms to it, nothing is wrong. Otherwise pass predict_fn= that returns logits and "
            "targets as the loss takes them (-100 for ignored targets), or another likelihood="
        )
    named = (reading for reading in agreeing if getattr(reading, "ignore_index", None) in clues.ignored)
    chosen = next(named, next(iter(agreeing), usual))
    if isinstance(chosen, Categorical) and (chosen != usual or chosen.ignore_index != Categorical.ignore_index):
        say.info(
            f"classes are read from dim {chosen.class_dim % logits.ndim} of the logits, and label "
            f"{chosen.ignore_index} is ignored"
        )
    carried[key] = _described(chosen)
    return chosen


def _described(reading: Likelihood) -> list[Any]:
    """A reading as plain values, by which it is recognised in a resumed run."""
    return [reading.class_dim, reading.ignore_index] if isinstance(reading, Categorical) else [type(reading).__name__]


class _Point(NamedTuple):
    loss: Tensor
    outputs: Tensor
    targets: Tensor


def _point(view: ModelView, params: Mapping[str, Tensor], batch: MicroBatch) -> _Point | None:
    """Loss, outputs and targets of a micro-batch at some parameters; None if a process has no finite loss.

    All other parameters are copies, because this pass may write to them: the loss is compared here, not measured.
    """
    point = None
    try:
        loss, outputs, targets = view.with_gradients.loss_and_logits({**view.scratch(), **params}, batch)
        if targets is not None and torch.isfinite(loss):
            point = _Point(loss, outputs, targets)
    except Exception as error:  # this probe does not measure the loss, so an error of the user's code is no problem
        if is_out_of_memory(error) or is_written(error):
            raise
        log.debug("the loss can't be compared with the likelihood: %s", error)
    missing = view.sum_over_processes(torch.tensor(float(point is None)))
    return None if missing else point


def _agreeing(
    view: ModelView, batch: MicroBatch, point: _Point, fitting: Sequence[Likelihood], clues: Clues
) -> list[Likelihood]:
    """The readings for which the loss is a mean or sum of the negative log-likelihood, in the given order.

    The first process decides for all, because they may have to exchange tensors in the next pass.
    """
    for given in (None, clues):
        ways = {reading: _ways(point, reading, given) for reading in fitting}
        found = view.processes.from_first([reading for reading in fitting if ways[reading].any()])
        if found == [fitting[0]]:
            return found
        if found:  # several (if the head starts at zero), or only an unusual one (perhaps by chance): compare again
            other = _point(view, _moved(view.params, 0), batch)
            if other is None:
                return [reading for reading in found if reading == fitting[0]]
            again = [reading for reading in found if (ways[reading] & _ways(other, reading, given)).any()]
            if found := view.processes.from_first(again):
                return found
    return _agreeing_if_smoothed(view, batch, [r for r in fitting if isinstance(r, Categorical)], clues)


def _agreeing_if_smoothed(
    view: ModelView, batch: MicroBatch, fitting: Sequence[Categorical], clues: Clues
) -> list[Likelihood]:
    """The readings that agree with some amount of label smoothing, which must be the same at two points."""
    one, other = (_point(view, _moved(view.params, seed), batch) if fitting else None for seed in (0, 1))
    if one is None or other is None:
        return []
    found: list[Likelihood] = []
    for reading in fitting:
        shares = smoothings_that_fit(reading, one.outputs, one.targets, clues, one.loss)
        given = replace(clues, smoothings=shares)
        if (_ways(one, reading, given) & _ways(other, reading, given)).any():
            found.append(reading)
    return view.processes.from_first(found)


def _ways(point: _Point, reading: Likelihood, clues: Clues | None) -> Tensor:
    losses = training_losses(reading, point.outputs, point.targets, clues)
    rounding = max(torch.finfo(tensor.dtype).eps for tensor in (point.loss, point.outputs))
    return torch.isclose(losses, on_host(point.loss), rtol=max(1e-4, 2 * rounding), atol=1e-6)


def _stays_within_zero_and_one(view: ModelView, batch: MicroBatch) -> bool:
    """Whether outputs are probabilities: logits may happen to be between 0 and 1, but not for all parameters."""
    for params in ({}, *(_moved(view.params, seed) for seed in range(3))):
        outputs = at_least_single(view.detached.logits(batch, params)[0])
        if not view.processes.from_first(bool(((outputs >= 0) & (outputs <= 1)).all())):
            return False
    return True


def _moved(params: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Other parameters: each tensor moves by a third of its own size, or of a usual initialisation's if it is small."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, value in params.items():
        inputs = value[0].numel() if value.ndim > 1 and len(value) else max(1, value.numel())
        size = torch.linalg.vector_norm(at_least_single(value)) / max(1, value.numel()) ** 0.5
        noise = torch.randn(value.shape, generator=generator).to(value)
        moved[name] = value + noise * (size.clamp(min=inputs**-0.5) / 3).to(value.dtype)
    return moved
