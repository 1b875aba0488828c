"""What linear probes are to read off: one label, or some values, for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

TaskName: TypeAlias = Literal["auto", "classes", "regression"]

_IGNORED = -100  # the label of samples that do not count, as in PyTorch's losses


@dataclass(frozen=True)
class Task:
    """Classes or regression.

    Args:
        classes: Whether targets are classes.
        width: Values of a target: 1 for classes.
        outputs: Values that the network's own head returns for a sample.
    """

    classes: bool
    width: int
    outputs: int

    @classmethod
    def of(cls, name: TaskName, logits: Tensor, targets: Tensor | None) -> Task:
        """The task that an argument names, from the logits and targets of a micro-batch.

        "auto" means classes for integer targets and for targets that are all 0 or 1, but regression for integer targets
        that are more than 0 and 1 if the network returns one number for each sample.

        Raises:
            MisconfigurationException: If there is not one label, or one vector of values, for each sample; the message
                names `predict_fn`.

        Example:
            >>> Task.of("auto", torch.zeros(8, 10), torch.arange(8)).classes
            True
        """
        if targets is None:
            raise MisconfigurationException(
                "the batches have no tensor of targets, so there is nothing to read off the layers: pass "
                "predict_fn=lambda module, batch: (logits, targets)"
            )
        if targets.ndim == 0 or len(targets) != len(logits) or not targets.numel():
            raise MisconfigurationException(
                f"targets of shape {tuple(targets.shape)} are not one for each of {len(logits)} samples: pass "
                "predict_fn=lambda module, batch: (logits, targets)"
            )
        each, outputs = targets[0].numel(), logits[0].numel()
        whole = not targets.is_floating_point()
        yes_or_no = bool(((targets == 0) | (targets == 1)).all())
        labels = name != "regression" and (whole or yes_or_no or name == "classes")
        if each > 1 and labels and yes_or_no and targets.shape == logits.shape:
            raise MisconfigurationException(
                f"each sample has {each} labels that are 0 or 1, and linear probes read one label: pass "
                "predict_fn=lambda module, batch: (logits, targets) with one of them, or with the index of the class "
                "if one of them is 1"
            )
        if each > 1 and (labels or targets.ndim > 2):
            raise MisconfigurationException(
                f"each sample has {each} targets, like the tokens of a sequence or the pixels of an image, and linear "
                "probes read one label: pass predict_fn=lambda module, batch: (logits, targets) with one label for "
                "each sample"
            )
        classes = name == "classes" or (name == "auto" and (yes_or_no or (whole and outputs > 1)))
        return cls(classes, 1 if classes else each, outputs)

    def target_rows(self, targets: Tensor) -> Tensor:
        """The targets of a micro-batch, (samples, width)."""
        return targets.reshape(len(targets), -1)

    @property
    def output_width(self) -> int:
        """Columns of `output_rows`."""
        return 1 if self.classes else self.outputs

    def output_rows(self, logits: Tensor) -> Tensor:
        """The prediction of the network's own head on a micro-batch: a class, or its outputs if there is only one."""
        rows = logits.reshape(len(logits), -1)
        return rows.argmax(1, keepdim=True) if self.classes and self.outputs > 1 else rows

    def counted(self, targets: Tensor) -> Tensor:
        """Mask of the samples with a label, from their rows of targets."""
        return (targets != _IGNORED).all(1) if self.classes else torch.ones_like(targets[:, 0], dtype=torch.bool)

    def head(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Accuracy or R^2 of the network's own head; None if it predicts something else than these targets.

        Args:
            outputs: Rows from `output_rows`.
            targets: Rows from `target_rows`.
        """
        if not self.classes:
            if self.outputs != self.width:
                return None
            varying = (targets != targets[:1]).any(0)
            errors, spread = (targets - outputs).square().sum(0), (targets - targets.mean(0)).square().sum(0)
            return float((1 - errors / spread)[varying].mean())
        labels = range(max(2, self.outputs))
        if not torch.isin(targets, targets.new_tensor(labels)).all():
            return None
        if self.outputs == 1:  # of probabilities, or of logits
            outputs = outputs > (0.5 if ((outputs >= 0) & (outputs <= 1)).all() else 0)
        return float((outputs == targets).double().mean())
