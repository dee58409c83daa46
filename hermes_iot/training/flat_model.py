"""A torch module whose tensors are views of one flat float32 vector. Part of `torch_trainer`, imported by nothing else.

Order: parameters as in `named_parameters` (a tied weight once), then floating persistent buffers (batch normalisation's
statistics). Everything in the vector is float32, whatever the task built. With views, loading a model is one copy and
an optimizer's step needs none.

Integer buffers (counters) and buffers the task declared non-persistent (constants) are local: they never travel, and
`load` puts them back to what `build_model` gave, so that a job's result depends on the job alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from hermes_iot.domain import ModelSignature, Params, TensorSpec
from hermes_iot.errors import Incompatible, UsageError


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer's place in the module, the tensor that belongs there, and its value at birth."""

    owner: nn.Module
    leaf: str
    tensor: Tensor
    born: Tensor


class FlatModel:
    """A module and its vector.

    Args:
        module: taken over: its tensors become views.
        origin: names the task in messages.

    Raises:
        UsageError: a parameter is lazy or not floating, or nothing can be trained.
    """

    def __init__(self, module: nn.Module, origin: str) -> None:
        for name, parameter in module.named_parameters():
            if is_lazy(parameter) or not parameter.is_floating_point():
                raise UsageError(
                    f"{origin}: parameter {name} is lazy or not a real number", mend="Give its size and dtype"
                )
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise UsageError(f"{origin}: the model has no parameter to train")
        self.module = module.float()
        persistent = set(module.state_dict(keep_vars=True))
        travelling: list[tuple[str, Tensor]] = list(module.named_parameters())
        self._shared: list[_Buffer] = []
        self._local: list[_Buffer] = []
        for name, tensor in module.named_buffers():
            path, _, leaf = name.rpartition(".")
            travels = name in persistent and tensor.is_floating_point()
            buffer = _Buffer(module.get_submodule(path), leaf, tensor, tensor.detach().clone())
            (self._shared if travels else self._local).append(buffer)
            travelling += [(name, tensor)] if travels else []
        self.signature = ModelSignature(
            tensors=tuple(TensorSpec(name=name, shape=tuple(tensor.shape)) for name, tensor in travelling)
        )
        flat = torch.empty(self.signature.parameters, dtype=torch.float32)
        self._vector: Params = flat.numpy()
        start = 0
        for _, tensor in travelling:
            view = flat[start : start + tensor.numel()].view(tensor.shape)
            view.copy_(tensor.detach())
            tensor.data = view
            start += tensor.numel()

    @property
    def normalises_batches(self) -> bool:
        """Whether the model takes statistics over a batch, which a batch of one row does not have."""
        return any(isinstance(part, _BatchNorm) for part in self.module.modules())

    def widest(self, x: Tensor) -> int:
        """Numbers in the largest output of any part of the model, for each of the rows passed through; at least 1."""
        sizes = [1]

        def note(_part: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel() // len(x))

        hooks = [part.register_forward_hook(note) for part in self.module.modules()]
        try:
            self.module(x)
        finally:
            for hook in hooks:
                hook.remove()
        return max(sizes)

    def load(self, vector: Params) -> None:
        """Make the module's tensors those of a vector, shape (P,), and its local buffers those of its birth.

        Raises:
            Incompatible: the vector is of another length.
        """
        if vector.shape != self._vector.shape:
            why = f"this model has {self._vector.size} values"
            raise Incompatible(f"a model vector of shape {vector.shape} came", why=why)
        for buffer in self._shared:
            _reattach(buffer)
        for buffer in self._local:
            _reattach(buffer)
            buffer.tensor.detach().copy_(buffer.born)
        np.copyto(self._vector, vector)

    def vector(self) -> Params:
        """A copy of the vector, shape (P,)."""
        for buffer in self._shared:
            current = getattr(buffer.owner, buffer.leaf)
            if current is not buffer.tensor:  # the model's forward assigned a new tensor instead of writing in place
                buffer.tensor.detach().copy_(current.detach())
                _reattach(buffer)
        return self._vector.copy()


def _reattach(buffer: _Buffer) -> None:
    setattr(buffer.owner, buffer.leaf, buffer.tensor)
