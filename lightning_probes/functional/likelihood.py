"""What a model's outputs say about its labels: sampling them, their log-likelihood, and its derivative.

The likelihood alone counts here: no class weights, no label smoothing, no reduction. A sample's log-likelihood is the
sum over its target elements (the tokens of a sequence, the labels of a multi-label task).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_probes.functional.wide import at_least_single

LikelihoodName: TypeAlias = Literal["auto", "categorical", "bernoulli", "gaussian"]


@dataclass(frozen=True)
class Categorical:
    """One of several classes at each position; outputs are the logits of a softmax.

    Args:
        class_dim: Dim of the logits that holds the classes. Labels have the other dims.
        ignore_index: Label of positions that don't count.

    Example:
        >>> likelihood = Categorical()
        >>> logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
        >>> likelihood.score(logits, torch.tensor([1, 0]))
        tensor([[-0.5000,  0.5000],
                [ 0.0000,  0.0000]])
    """

    class_dim: int = -1
    ignore_index: int = -100

    def sample(self, logits: Tensor, generator: torch.Generator, targets: Tensor | None = None) -> Tensor:
        """Labels drawn from the model, `ignore_index` where `targets` have it.

        Args:
            logits: Shape `(samples, ...)`.
            generator: On the logits' device. Nothing else is drawn from.
            targets: Shape of the labels.
        """
        probabilities = at_least_single(logits).softmax(self.class_dim).movedim(self.class_dim, -1)
        # One number a position, looked up in the cumulative distribution. In integers: those add up alike on every
        # device, and what is not finite becomes some label, to be seen in the result, where torch.multinomial raises.
        cumulative = (probabilities * 2**40).long().cumsum(-1)
        draws = torch.randint(2**40, (*cumulative.shape[:-1], 1), generator=generator, device=logits.device)
        labels = torch.searchsorted(cumulative, draws, right=True).squeeze(-1).clamp_(max=probabilities.shape[-1] - 1)
        return labels if targets is None else labels.masked_fill(~self.counted(targets), self.ignore_index)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Derivative of each position's log-likelihood by its logits: one-hot minus softmax; 0 where ignored."""
        score = -at_least_single(logits).softmax(self.class_dim)
        classes, unknown = self._classes(labels.unsqueeze(self.class_dim), logits)
        score.scatter_add_(self.class_dim, classes, torch.ones_like(classes, dtype=score.dtype))
        score.masked_fill_(unknown, torch.nan).masked_fill_(~self.counted(labels).unsqueeze(self.class_dim), 0)
        return score.to(logits.dtype)

    def exact_scores(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """Vectors b whose outer products b b^T sum to diag(p) - p p^T, the covariance of the score over labels.

        The squared gradient norms that they give sum to the expectation over labels: no sampling, and one backward pass
        less than there are classes. Drawing a label is the same as asking of one class after the other, "this one, or a
        later one?"; the information of these questions adds up, and each b is the score of one of them.

        Raises:
            ValueError: If a sample has several positions: labels are then as many as classes to the power of positions.
        """
        classes = logits.shape[self.class_dim]
        if logits.numel() != len(logits) * classes:
            raise ValueError(
                f"exact scores need one position a sample, logits of shape {tuple(logits.shape)} have "
                f'{logits[0].numel() // classes}: set labels="sampled"'
            )
        log_p = at_least_single(logits).log_softmax(self.class_dim).movedim(self.class_dim, -1)
        if targets is not None:
            counted = self.counted(targets).unsqueeze(-1)
        lowest = torch.finfo(log_p.dtype).min  # instead of -inf, where no class is possible any more
        for label in range(exact_passes(self, logits)):
            chosen, others = log_p[..., label : label + 1], log_p[..., label + 1 :]
            reached, later = (part.logsumexp(-1, True).clamp(min=lowest) for part in (log_p[..., label:], others))
            score = torch.cat([torch.ones_like(chosen), -(others - later).exp()], -1)
            score *= ((chosen + later - reached) / 2).exp()
            if targets is not None:
                score = score.where(counted, 0)
            yield F.pad(score, (label, 0)).movedim(-1, self.class_dim).to(logits.dtype)

    def nll(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the negative log-likelihood over positions, in nats, and how many count."""
        log_probabilities = at_least_single(logits).log_softmax(self.class_dim)
        return self.nll_at_positions(log_probabilities, targets).sum(), self.counted(targets).sum()

    def nll_at_positions(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each position, in nats; 0 where ignored, NaN where the target is no class."""
        classes, unknown = self._classes(targets.unsqueeze(self.class_dim), log_probabilities)
        chosen = log_probabilities.gather(self.class_dim, classes).masked_fill(unknown, torch.nan)
        return -chosen.squeeze(self.class_dim).masked_fill(~self.counted(targets), 0)

    def counted(self, targets: Tensor) -> Tensor:
        """Where targets count."""
        return targets.long() != self.ignore_index  # as uint8, -100 is 156

    def accuracy_counts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How many positions have their largest logit at the target, and how many count."""
        counted = self.counted(targets)
        return ((logits.argmax(self.class_dim) == targets) & counted).sum(), counted.sum()

    def _classes(self, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Labels as an index into the classes, 0 where they are none; and where they are none.

        An index out of range is never used: on a GPU that ends the process.
        """
        labels = labels.long()
        unknown = (labels < 0) | (labels >= logits.shape[self.class_dim])
        return labels.masked_fill(unknown, 0), unknown


@dataclass(frozen=True)
class Bernoulli:
    """Independent yes-or-no labels, one for each output; outputs are the logits of a sigmoid.

    Example:
        >>> Bernoulli().score(torch.tensor([[0.0, 100.0]]), torch.tensor([[1, 1]]))
        tensor([[0.5000, 0.0000]])
    """

    def sample(self, logits: Tensor, generator: torch.Generator, targets: Tensor | None = None) -> Tensor:
        """Labels 0 and 1 drawn from the model, in the dtype of the logits."""
        probabilities = at_least_single(logits).sigmoid()
        draws = torch.rand(logits.shape, generator=generator, dtype=probabilities.dtype, device=logits.device)
        return (draws < probabilities).to(logits.dtype)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Derivative of the log-likelihood by the logits: label minus sigmoid."""
        return like_outputs(labels, logits) - logits.sigmoid()

    def exact_scores(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """For each output the standard deviation of its label there, 0 elsewhere: one backward pass an output."""
        deviations = at_least_single(logits).sigmoid()
        return _one_output_each((deviations * (1 - deviations)).sqrt().to(logits.dtype))

    def nll(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the negative log-likelihood over labels, in nats, and how many they are."""
        outputs = at_least_single(logits)
        total = F.binary_cross_entropy_with_logits(outputs, like_outputs(targets, outputs), reduction="sum")
        return total, _number(logits)


@dataclass(frozen=True)
class Gaussian:
    """Real-valued labels with unit variance around each output (least squares).

    Example:
        >>> Gaussian().nll(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
        (tensor(2.), tensor(2))
    """

    def sample(self, logits: Tensor, generator: torch.Generator, targets: Tensor | None = None) -> Tensor:
        """Outputs plus standard normal noise."""
        return logits + torch.randn(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Derivative of the log-likelihood by the outputs: label minus output."""
        return like_outputs(labels, logits) - logits

    def exact_scores(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """1 at each output in turn, 0 elsewhere: one backward pass an output."""
        return _one_output_each(torch.ones_like(logits))

    def nll(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Half the sum of squared errors over outputs (the constant left out), and how many they are."""
        outputs = at_least_single(logits)
        return (like_outputs(targets, outputs) - outputs).square().sum() / 2, _number(logits)


Likelihood: TypeAlias = Categorical | Bernoulli | Gaussian


def check_likelihood(name: str) -> None:
    """It is one of `LikelihoodName`.

    Raises:
        ValueError: If it is not; lists them.
    """
    if name not in get_args(LikelihoodName):
        names = ", ".join(map(repr, get_args(LikelihoodName)))
        raise ValueError(f"likelihood must be one of {names}, got {name!r}")


def infer_likelihood(name: LikelihoodName, logits: Tensor, targets: Tensor | None = None) -> Likelihood:
    """The likelihood that fits a model's outputs and its targets.

    Args:
        name: "auto" takes integer targets with the logits of several classes, last dim or dim 1, as categorical, and
            nothing else.
        logits: Outputs of the model, shape `(samples, ...)`.
        targets: Where missing, a named likelihood is taken on trust, with the classes in the last dim.

    Raises:
        ValueError: If there is no such name; if "auto" does not apply; if shapes or dtypes don't fit the likelihood; or
            if categorical outputs are probabilities: rows that are non-negative and sum to 1.

    Example:
        >>> infer_likelihood("auto", torch.zeros(8, 10, 4, 4), torch.zeros(8, 4, 4, dtype=torch.long))
        Categorical(class_dim=1, ignore_index=-100)
    """
    check_likelihood(name)
    found = f"found outputs {_described(logits)} and " + (
        "no targets" if targets is None else f"targets {_described(targets)}"
    )
    if not logits.is_floating_point() or logits.ndim == 0:
        raise ValueError(f"outputs must be real numbers, one row a sample, {found}: set predict_fn=")
    if name == "auto":
        dims = [] if targets is None else class_dims(logits, targets)
        if not dims or logits.shape[dims[0]] == 1:
            raise ValueError(
                "only integer targets with the logits of several classes tell their likelihood by themselves, "
                f'{found}: set likelihood="categorical", "bernoulli" or "gaussian", or predict_fn= to return others'
            )
    elif name == "categorical":
        dims = class_dims(logits, targets) if targets is not None else [-1] if logits.ndim in (2, 3) else []
        if not dims:
            raise ValueError(
                "a categorical likelihood takes integer class indices, and logits with one more dim, last or at 1, "
                f"{found}: set predict_fn= to return such, or another likelihood="
            )
    else:
        if targets is not None:
            like_outputs(targets, logits)
        return Bernoulli() if name == "bernoulli" else Gaussian()
    if any(_are_probabilities(logits, dim) for dim in dims):
        raise ValueError(
            "the model's outputs are probabilities (non-negative, rows sum to 1), where logits are needed: set "
            "predict_fn= to return what goes into the softmax, or the probabilities' logarithm"
        )
    return Categorical(dims[0])


def class_dims(logits: Tensor, targets: Tensor) -> list[int]:
    """Dims of the logits that may hold the classes, given integer targets: the last, or dim 1, or either.

    Example:
        >>> class_dims(torch.zeros(8, 10, 10), torch.zeros(8, 10, dtype=torch.long))
        [-1, 1]
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return []
    last = [-1] if targets.shape == logits.shape[:-1] else []
    second = [1] if logits.ndim > 2 and targets.shape == logits.shape[:1] + logits.shape[2:] else []
    return last + second


def exact_passes(likelihood: Likelihood, logits: Tensor) -> int:
    """How many tensors `exact_scores` gives, each of which takes a backward pass.

    Example:
        >>> exact_passes(Categorical(), torch.zeros(8, 10)), exact_passes(Bernoulli(), torch.zeros(8, 10))
        (9, 10)
    """
    if isinstance(likelihood, Categorical):
        return max(1, logits.shape[likelihood.class_dim] - 1)
    return logits[:1].numel()


def like_outputs(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the outputs' shape and dtype; they may lack, or have too many, dims of size 1.

    Raises:
        ValueError: If there is not one label for each output. It is not broadcast, which would compare all with all.
    """
    if labels.shape != outputs.shape:
        sizes = [[size for size in tensor.shape if size != 1] for tensor in (labels, outputs)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"need one label for each output, found labels {_described(labels)} and outputs {_described(outputs)}: "
                "set predict_fn= to return (outputs, targets) of one shape"
            )
        labels = labels.reshape(outputs.shape)
    return labels.to(outputs.dtype)


def _are_probabilities(logits: Tensor, class_dim: int) -> bool:
    sums = at_least_single(logits).sum(class_dim)
    tolerance = max(1e-4, 4 * torch.finfo(logits.dtype).eps)
    return bool(logits.shape[class_dim] > 1 and ((logits >= 0).all() & ((sums - 1).abs() < tolerance).all()))


def _one_output_each(values: Tensor) -> Iterator[Tensor]:
    rows = values.reshape(len(values), -1)
    for output in range(rows.shape[1]):
        cotangent = torch.zeros_like(rows)
        cotangent[:, output] = rows[:, output]
        yield cotangent.view(values.shape)


def _number(tensor: Tensor) -> Tensor:
    return torch.tensor(tensor.numel(), device=tensor.device)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
