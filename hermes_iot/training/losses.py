"""What a task that brings no loss and no accuracy of its own is measured with. Part of `torch_trainer`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hermes_iot.errors import UsageError
from hermes_iot.training.data import Dataset


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for integer targets, binary for a single logit; mean squared error for float targets."""
    return _loss(outputs, targets, "mean")


def default_row_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """What `default_loss` is the mean of, shape (rows,); a row of several targets counts as their mean."""
    return _loss(outputs, targets, "none").reshape(len(targets), -1).mean(dim=1)


def _loss(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    if not targets.is_floating_point():
        if _single_logit(outputs, targets):
            logits, wanted = outputs.reshape(targets.shape), targets.to(outputs.dtype)
            return functional.binary_cross_entropy_with_logits(logits, wanted, reduction=reduction)
        return functional.cross_entropy(outputs, targets, reduction=reduction)
    if outputs.numel() != targets.numel():  # broadcasting would quietly compare everything with everything
        raise ValueError(f"outputs {tuple(outputs.shape)} cannot be compared with targets {tuple(targets.shape)}")
    return functional.mse_loss(outputs.reshape(targets.shape), targets, reduction=reduction)


def default_accuracy(outputs: Tensor, targets: Tensor) -> float | None:
    """Share of rows whose likeliest class is the target; None for float targets."""
    if targets.is_floating_point():
        return None
    if _single_logit(outputs, targets):
        guesses = (outputs.reshape(targets.shape) > 0).to(targets.dtype)
    else:
        guesses = outputs.argmax(dim=1)
    return int((guesses == targets).sum()) / targets.numel()


def check_labels(data: Dataset, outputs: Tensor, targets: Tensor, what: str) -> None:
    """Whether every class in a data set is one the model tells apart, going by its outputs for some rows of it.

    Raises:
        UsageError: one is not.
    """
    classes = 2 if _single_logit(outputs, targets) else outputs.shape[1]
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= classes:
        raise UsageError(f"{what}: targets run from {low} to {high}", why=f"the model tells {classes} classes apart")


def _single_logit(outputs: Tensor, targets: Tensor) -> bool:
    return outputs.shape == targets.shape or (outputs.ndim == targets.ndim + 1 and outputs.shape[1] == 1)
