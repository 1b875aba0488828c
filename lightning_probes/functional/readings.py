"""How a model's outputs and targets are to be read, as the loss that it is trained with tells.

Two dims of the logits may fit the classes, and any label may stand for padding. A reading settles both. Under the one
that is meant, the loss of training is the mean negative log-likelihood or a sum of it, perhaps with class weights or
label smoothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.functional.likelihood import (
    Bernoulli,
    Categorical,
    Likelihood,
    LikelihoodName,
    class_dims,
    infer_likelihood,
    like_outputs,
)
from lightning_probes.functional.wide import at_least_single, on_host

_SMOOTHINGS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3)


@dataclass(frozen=True, eq=False)
class Clues:
    """What a model's attributes say of its loss: tried, not taken on trust.

    Args:
        ignored: Labels that are said not to count.
        padding: Labels that may stand for padding.
        weights: Tensors that may be weights of the classes, or of positive labels.
        smoothings: Shares of label smoothing.
    """

    ignored: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    weights: tuple[Tensor, ...] = ()
    smoothings: tuple[float, ...] = _SMOOTHINGS

    @classmethod
    def of(cls, module: nn.Module) -> Clues:
        """Attributes with a telling name, and vectors that may be weights, of the model and all below it.

        Example:
            >>> Clues.of(nn.Embedding(11, 6, padding_idx=3)).padding
            (3,)
        """
        found = [item for child in module.modules() for item in [*vars(child).items(), *child.named_buffers("", False)]]
        whole = {(name, value): None for name, value in found if type(value) is int}
        shares = [value for name, value in found if type(value) is float and "smoothing" in name and 0 < value < 1]
        tensors = [value.detach() for _, value in found if isinstance(value, Tensor) and value.is_floating_point()]
        return cls(
            tuple(value for name, value in whole if "ignore" in name),
            tuple(value for name, value in whole if "pad" in name),
            tuple(value for value in tensors if value.ndim < 2 and value.layout == torch.strided),
            tuple(dict.fromkeys([*shares, *_SMOOTHINGS])),
        )


def readings(
    name: LikelihoodName, logits: Tensor, targets: Tensor | None = None, clues: Clues | None = None
) -> list[Likelihood]:
    """The likelihoods that fit; first the one to take if nothing else is known.

    Labels that may not count are those the clues name, and the lowest, the highest and the most frequent one. A label
    that is no class can't count, so that there is no choice then.

    Args:
        name: See `infer_likelihood`.
        logits: Outputs of the model, shape `(samples, ...)`.
        targets: Their targets.
        clues: Of the model.

    Raises:
        ValueError: As `infer_likelihood`, and if several labels are no classes.

    Example:
        >>> readings("auto", torch.zeros(3, 10), torch.tensor([4, 255, 7], dtype=torch.uint8))
        [Categorical(class_dim=-1, ignore_index=255)]
    """
    likelihood = infer_likelihood(name, logits, targets)
    if targets is None or not isinstance(likelihood, Categorical):
        return [likelihood]
    labels = targets.detach().cpu().long().flatten()
    found: list[Likelihood] = []
    for dim in class_dims(logits, targets):
        classes = logits.shape[dim]
        none = sorted({*labels[(labels < 0) | (labels >= classes)].tolist()})
        if len(none) > 1:
            raise ValueError(
                f"the targets have labels {', '.join(map(str, none[:5]))}, none of which is one of {classes} classes: "
                "set predict_fn= to return targets that are -100 wherever they don't count"
            )
        ignored = none or [likelihood.ignore_index, *_perhaps_ignored(labels, classes, clues or Clues())]
        found += [Categorical(dim, index) for index in dict.fromkeys(ignored)]
    return found


def training_losses(reading: Likelihood, outputs: Tensor, targets: Tensor, clues: Clues | None = None) -> Tensor:
    """All that the loss of training may be under a reading; the mean negative log-likelihood first.

    Args:
        reading: How to read outputs and targets.
        outputs: Of the model on a micro-batch, shape `(samples, ...)`.
        targets: Theirs.
        clues: What weights and label smoothing to try too; None for neither.

    Returns:
        Shape `(ways,)`, float64, on the CPU. Each way has the same place whatever the values of outputs and targets.

    Example:
        >>> logits, targets = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1])
        >>> bool(F.cross_entropy(logits, targets) == training_losses(Categorical(), logits, targets)[0].float())
        True
    """
    outputs = at_least_single(outputs.detach())
    if isinstance(reading, Categorical):
        losses = _of_classes(reading, outputs, targets, clues)
    elif isinstance(reading, Bernoulli):
        losses = _of_yes_and_no(outputs, like_outputs(targets, outputs), clues)
    else:
        half = (like_outputs(targets, outputs) - outputs).square() / 2
        losses = iter([*_reduced(half), *_reduced(2 * half)])
    return torch.stack([*losses])


def smoothings_that_fit(
    reading: Categorical, outputs: Tensor, targets: Tensor, clues: Clues, loss: Tensor
) -> tuple[float, ...]:
    """The shares of label smoothing by which the loss would be that of a reading, one for each way that there is.

    A way is a choice of weights and of a mean or sum. The loss is linear in the share, so one batch decides it for each
    way, and another one whether any of them was right.

    Example:
        >>> logits, targets = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1])
        >>> loss = F.cross_entropy(logits, targets, label_smoothing=0.037)
        >>> [round(share, 3) for share in smoothings_that_fit(Categorical(), logits, targets, Clues(), loss)]
        [0.037]
    """
    plain = len(training_losses(reading, outputs, targets))
    losses = training_losses(reading, outputs, targets, replace(clues, smoothings=(1.0,)))[plain:]
    none, full = losses.view(-1, 2, plain).unbind(1)
    shares = ((on_host(loss) - none) / (full - none)).flatten().tolist()
    return tuple(dict.fromkeys(round(share, 12) for share in shares if 0 < share < 1))


def _perhaps_ignored(labels: Tensor, classes: int, clues: Clues) -> list[int]:
    """Classes among the labels that may stand for positions that don't count; the likeliest first."""
    counts = torch.bincount(labels, minlength=classes)
    occurring = [int(labels.min()), int(labels.max()), int(counts.argmax())] if len(labels) else []
    padding = [index for index in clues.padding if 0 <= index < classes and counts[index]]
    return [index for index in clues.ignored if 0 <= index < classes] + padding + occurring


def _of_classes(reading: Categorical, logits: Tensor, targets: Tensor, clues: Clues | None) -> Iterator[Tensor]:
    log_probabilities = logits.log_softmax(reading.class_dim)
    classes = logits.shape[reading.class_dim]
    counted = reading.counted(targets)
    nll = reading.nll_at_positions(log_probabilities, targets)
    yield from _reduced(nll, counted)
    if clues is None:
        return
    labels = targets.long().clamp(0, classes - 1)
    for weights in (None, *(given for given in clues.weights if given.shape == (classes,))):
        if weights is None:
            weight, uniform = counted, -log_probabilities.mean(reading.class_dim)
        else:
            weights = weights.to(logits)
            weight = weights[labels] * counted
            uniform = -(log_probabilities.movedim(reading.class_dim, -1) @ weights) / classes
        uniform = uniform.masked_fill(~counted, 0)
        for share in (0.0, *clues.smoothings):
            yield from _reduced((1 - share) * weight * nll + share * uniform, weight)


def _of_yes_and_no(logits: Tensor, targets: Tensor, clues: Clues | None) -> Iterator[Tensor]:
    yield from _reduced(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"))
    if clues is None:
        return
    for weights in (None, *(given.to(logits) for given in clues.weights if given.numel() in (1, logits.shape[-1]))):
        for share in (0.0, *clues.smoothings):
            smooth = targets * (1 - share) + share / 2
            yield from _reduced(
                F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none")
            )


def _reduced(values: Tensor, weights: Tensor | None = None) -> list[Tensor]:
    """Mean, sum, sum for each sample, mean over ignored positions too, mean of the samples' means."""
    values = on_host(values).reshape(len(values), -1)
    weights = torch.ones_like(values) if weights is None else on_host(weights).reshape(len(values), -1)
    total, by_sample = values.sum(), values.sum(1) / weights.sum(1)
    return [total / weights.sum(), total, total / len(values), values.mean(), by_sample[weights.any(1)].mean()]
