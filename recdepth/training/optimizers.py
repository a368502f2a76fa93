"""Optimizers: parameter groups by role, and Muon with AdamW behind one face."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

ParameterGroup = dict[str, Any]


def parameter_groups(model: PreTrainedModel) -> list[ParameterGroup]:
    """The trainable parameters by role, as torch optimizers take them.

    Roles: ``matrix`` (2-D weights of hidden layers), ``embedding`` (token embeddings and the head) and ``vector``
    (norms, biases: never decayed). Shared weights are listed once, empty roles not at all.
    """
    ends = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m for p in m.parameters()}

    def role(parameter: nn.Parameter) -> str:
        if parameter.ndim != 2:
            return "vector"
        return "embedding" if id(parameter) in ends else "matrix"

    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[ParameterGroup] = []
    for name in ("matrix", "embedding", "vector"):
        if members := [p for p in trainable if role(p) == name]:
            groups.append({"params": members, "role": name})
            if name == "vector":
                groups[-1]["weight_decay"] = 0.0
    return groups


def orthogonalized(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Matrices whose singular values are near 1, by Newton-Schulz iterations x ← a·x + (b·xxᵀ + c·(xxᵀ)²)·x.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    Args:
        matrices: (batch, rows, columns), divided by their Frobenius norms first.
        coefficients: a, b, c.
        steps: how many iterations.
        eps: the least norm that is divided by.
        dtype: to compute in, and of the result.
    """
    a, b, c = coefficients
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices  # the smaller of xxᵀ and xᵀx
    x = wide.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


class BatchedMuon(Muon):
    """``torch.optim.Muon``, all matrices of a shape at once, and on a CPU in float32.

    Most CPUs have no bfloat16 products, and emulate them: with ``torch.optim.Muon``, which knows no other precision,
    more than half of the training step of a small model goes there.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; ``closure`` recomputes and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.device, parameter.dtype].append(parameter)
            for parameters in alike.values():
                self._step(group, parameters)
        return loss

    def _step(self, group: ParameterGroup, parameters: Sequence[Tensor]) -> None:
        """Of matrices of one shape, device and dtype."""
        rows, columns = parameters[0].shape
        momentum, lr, device = group["momentum"], group["lr"], parameters[0].device.type
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            updates.append(gradient.lerp(average, momentum) if group["nesterov"] else average)
        directions = orthogonalized(
            torch.stack(updates),
            group["ns_coefficients"],
            group["ns_steps"],
            group["eps"],
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
        )
        if group["adjust_lr_fn"] == "match_rms_adamw":
            rate = lr * 0.2 * math.sqrt(max(rows, columns))
        else:
            rate = lr * math.sqrt(max(1, rows / columns))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-rate)


class MuonAdamW(Optimizer):
    """Muon (:class:`BatchedMuon`) for the groups whose role is ``matrix``, ``torch.optim.AdamW`` for all others.

    Both sets of groups are in ``param_groups``, so one learning-rate scheduler, one gradient clipping and one
    checkpoint cover both. Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    Args:
        params: groups from :func:`parameter_groups`.
        lr: Muon's learning rate.
        adamw_lr: AdamW's.
        momentum: Muon's.
        betas: AdamW's.
        weight_decay: decoupled, for both, except where a group brings its own.
        adjust_lr: how Muon's rate follows a matrix's shape.

    Raises:
        ValueError: for values out of range, or when there is no ``matrix`` group or nothing else.
    """

    def __init__(
        self,
        params: list[ParameterGroup],
        lr: float,
        adamw_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        adjust_lr: Literal["original", "match_rms_adamw"] = "original",
    ):
        matrices = [dict(g) for g in params if g.get("role") == "matrix"]
        rest = [dict(g) for g in params if g.get("role") != "matrix"]
        if not matrices or not rest:
            raise ValueError("MuonAdamW needs groups of both kinds: role 'matrix' and others (see parameter_groups)")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be at least 0 and below 1")
        self._muon = BatchedMuon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=adjust_lr)
        self._adamw = AdamW(rest, lr=adamw_lr, betas=(betas[0], betas[1]), weight_decay=weight_decay)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, defaults={"lr": lr})
        self._share()

    def _share(self) -> None:
        """Let both optimizers work on this one's groups and state."""
        count = len(self._muon.param_groups)
        self._muon.param_groups = self.param_groups[:count]
        self._adamw.param_groups = self.param_groups[count:]
        self._muon.state = self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict ends here, with new groups and state
        self._share()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of both optimizers; ``closure`` recomputes and returns the loss."""
        loss = self._muon.step(closure)
        self._adamw.step()
        return loss
