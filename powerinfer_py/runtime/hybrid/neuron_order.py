"""The order in which a split layer holds its neurons: hot ones first, then the cold, both ascending.

Masks and rows inside the runtime are in this order; files, statistics and observers keep the file's ids, to which
`in_file_order` leads back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NeuronOrder:
    """hot, cold: int64 ids in the file's numbering, ascending, together each of the n_ff once."""

    hot: Ids
    cold: Ids

    @property
    def n_ff(self) -> int:
        """Neurons of the layer."""
        return self.hot.size + self.cold.size

    @property
    def placed(self) -> Ids:
        """The file's id of every place: (n_ff)."""
        return np.concatenate([self.hot, self.cold])

    def in_file_order(self, mask: Tensor) -> Tensor:
        """A mask (T, n_ff) whose columns are places, with ids as columns."""
        import torch

        ordered = torch.empty_like(mask)
        ordered[:, torch.from_numpy(self.placed)] = mask
        return ordered


def neuron_order(hot: npt.NDArray[np.int32], n_ff: int) -> NeuronOrder:
    """The order of a layer whose neurons `hot` are on the device. Raises ValueError for an id beyond the layer."""
    if hot.size and int(hot[-1]) >= n_ff:
        raise ValueError(f"neuron {int(hot[-1])} is hot, but the layer has {n_ff}")
    is_cold = np.ones(n_ff, np.bool_)
    is_cold[hot] = False
    return NeuronOrder(hot.astype(np.int64), np.flatnonzero(is_cold))
