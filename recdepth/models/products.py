"""Matrix products of the layers, with weights laid out as few rows want them."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """``y = x Wᵀ`` as :class:`torch.nn.Linear` without bias; layouts differ in the last bits.

    The weight is [out, in] as there, yet lies in memory as its transpose: a product of few rows, as sampling has them,
    takes half the time on some CPUs (benchmarks/products.py measures it).
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.lay_out()

    def lay_out(self) -> None:
        """Let the weight lie in memory as its transpose, where it does not."""
        self.weight.data = self.weight.data.t().contiguous().t()
