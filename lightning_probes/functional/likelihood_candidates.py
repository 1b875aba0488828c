"""How to read a model's outputs and targets, inferred from the loss that it is trained with.

Two dims of the logits may fit the classes, and any label may stand for padding. A reading decides both. Under the right
reading the training loss is the mean or sum of the negative log-likelihood, possibly with class weights or label
smoothing.
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
    """Hints about the loss from a model's attributes. They are tested, not trusted.

    Args:
        ignored: Labels that the loss may ignore, by the attribute's name.
        padding: Labels that may stand for padding.
        weights: Tensors that may be weights of the classes, or of positive labels.
        smoothings: Candidate values of label smoothing.
    """

    ignored: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    weights: tuple[Tensor, ...] = ()
    smoothings: tuple[float, ...] = _SMOOTHINGS

    @classmethod
    def of(cls, module: nn.Module) -> Clues:
        """Attributes with a matching name, and vectors that may be weights, of the model and its submodules.

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


def candidates(
    name: LikelihoodName, logits: Tensor, targets: Tensor | None = None, clues: Clues | None = None
) -> list[Likelihood]:
    """The likelihoods that fit the outputs and targets; the default comes first.

    Candidates for the ignored label are those in `clues`, and the lowest, the highest and the most frequent label. If a
    label is not a class it must be the ignored one, and there is no choice.

    Args:
        name: See `infer_likelihood`.
        logits: Outputs of the model, shape `(samples, ...)`.
        targets: Their targets.
        clues: Hints from the model's attributes.

    Raises:
        ValueError: As `infer_likelihood`, and if several labels are not classes.

    Example:
        >>> candidates("auto", torch.zeros(3, 10), torch.tensor([4, 255, 7], dtype=torch.uint8))
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
                f"the targets have labels {', '.join(map(str, none[:5]))}, which are not among the {classes} classes: "
                "set predict_fn= to return targets that are -100 wherever they don't count"
            )
        ignored = none or [likelihood.ignore_index, *_perhaps_ignored(labels, classes, clues or Clues())]
        found += [Categorical(dim, index) for index in dict.fromkeys(ignored)]
    return found


def training_losses(reading: Likelihood, outputs: Tensor, targets: Tensor, clues: Clues | None = None) -> Tensor:
    """Candidate values of the training loss under a reading; the mean negative log-likelihood comes first.

    Args:
        reading: How to read outputs and targets.
        outputs: The model's outputs on a micro-batch, shape `(samples, ...)`.
        targets: Their targets.
        clues: Weights and label smoothing to try as well; None for neither.

    Returns:
        Shape `(ways,)`, float64, on the CPU. The order of the ways does not depend on the outputs and targets.

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
    """The values of label smoothing for which a reading gives the loss: one for each way that has such a value.

    A way is a choice of weights and of mean or sum. The loss is linear in label smoothing, so one batch determines its
    value for each way. A second batch then shows whether any of them is right.

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
    """Classes among the labels that may mark ignored positions; the likeliest first."""
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
    """Mean, sum, sum per sample, mean that includes ignored positions, and mean of the samples' means."""
    values = on_host(values).reshape(len(values), -1)
    weights = torch.ones_like(values) if weights is None else on_host(weights).reshape(len(values), -1)
    total, by_sample = values.sum(), values.sum(1) / weights.sum(1)
    return [total / weights.sum(), total, total / len(values), values.mean(), by_sample[weights.any(1)].mean()]
