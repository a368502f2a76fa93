"""Compiling the model's seams for training, and going without for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eager_seams(model: nn.Module) -> Iterator[None]:
    """Run ``model`` uncompiled and in evaluation mode inside: the shapes of sampling change at every call.

    The seams that :meth:`RecurrentDepthForCausalLM.compile_seams` puts on the instance are set aside meanwhile.
    """
    names: tuple[str, ...] = ("embed", "recur", "decode")
    compiled = {name: vars(model).pop(name) for name in names if name in vars(model)}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        vars(model).update(compiled)
        model.train(training)
