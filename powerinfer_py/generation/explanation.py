"""What each layer did for each token of a generation: neurons that fired and were computed, where, and the time.

Watching costs time: the kernels hand out which neurons fired, and these are added up between the layers. So the times
here are those of a watched run, good to compare layers with, and a run that is not watched pays nothing. Invariant:
over all layers and phases the neurons are those that `Stats.activity` counted in the same forwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.models.activity import Activity

if TYPE_CHECKING:
    from torch import Tensor


class Phase(StrEnum):
    """A forward that computes tokens of a prompt, others' decoded tokens along with them or not, or decodes alone."""

    PROMPT = "prompt"
    DECODE = "decode"


@dataclass(eq=False)
class PhaseCounts:
    """Sums over the tokens of a phase, arrays of a value a layer: neurons that fired and were computed, (token, row)
    products of gate, up and down rows, those of them that a GPU computed, seconds.
    """

    n_layer: int
    tokens: int = 0
    fired: npt.NDArray[np.int64] = field(init=False)
    computed: npt.NDArray[np.int64] = field(init=False)
    products: npt.NDArray[np.int64] = field(init=False)
    on_device: npt.NDArray[np.int64] = field(init=False)
    seconds: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("fired", "computed", "products", "on_device"):
            setattr(self, name, np.zeros(self.n_layer, np.int64))
        self.seconds = np.zeros(self.n_layer, np.float64)


class Explanation:
    """Watches the forwards of one engine; given to `LLM.generate` or `LLM.stream`, filled when they are done.

    activity: the engine's. n_ff: neurons a layer.
    """

    def __init__(self, activity: Activity, n_ff: int) -> None:
        self._activity = activity
        self.n_layer = activity.n_layer
        self.n_ff = n_ff
        self.phases = {phase: PhaseCounts(self.n_layer) for phase in Phase}
        # How often each neuron fired, (n_layer, n_ff), in original order.
        self.fired = np.zeros((self.n_layer, n_ff), np.int64)
        self.token_phases: list[Phase] = []
        self._token_blocks: list[npt.NDArray[np.int64]] = []
        self._phase = Phase.DECODE
        self._filled = np.zeros(self.n_layer, np.int64)
        self._before = self._counted()
        self._stamp = 0.0

    def begin(self, n_tokens: int, n_prompt: int) -> None:
        """A forward of n_tokens begins, n_prompt of them of a prompt."""
        self._phase = Phase.PROMPT if n_prompt else Phase.DECODE
        self.phases[self._phase].tokens += n_tokens
        self.token_phases += [self._phase] * n_tokens
        self._token_blocks.append(np.zeros((n_tokens, self.n_layer), np.int64))
        self._filled[:] = 0
        self._before = self._counted()
        self._stamp = perf_counter()

    def end(self) -> None:
        """It is done. Only now are the counts complete: those of a GPU come to the host at the end."""
        counts = self.phases[self._phase]
        computed, products, on_device = self._counted() - self._before
        counts.computed += computed
        counts.products += products
        counts.on_device += on_device

    def __call__(self, layer: int, _predictor_input: Tensor, _predicted: Tensor | None, fired: Tensor, /) -> None:
        """As `LayerObserver`: the layer is done, attention and FFN, for all tokens or for the next ones of them."""
        counts = self.phases[self._phase]
        counts.seconds[layer] += perf_counter() - self._stamp
        per_token = fired.sum(dim=1).numpy()
        counts.fired[layer] += per_token.sum()
        start = self._filled[layer]
        self._token_blocks[-1][start : start + len(per_token), layer] = per_token
        self._filled[layer] += len(per_token)
        self.fired[layer] += fired.sum(dim=0).numpy()
        self._stamp = perf_counter()

    def _counted(self) -> npt.NDArray[np.int64]:
        """(3, n_layer): neurons computed, products, and those of a device, since the activity was last cleared."""
        activity = self._activity
        return np.stack([activity.first, activity.first + activity.second + activity.down, activity.on_device])

    @property
    def fired_by_token(self) -> npt.NDArray[np.int64]:
        """(tokens, n_layer): neurons that fired, tokens in the order in which they were computed."""
        return np.concatenate([np.zeros((0, self.n_layer), np.int64), *self._token_blocks])

    @property
    def main_phase(self) -> Phase:
        """Decoding, or the prompt where nothing was decoded."""
        return Phase.DECODE if self.phases[Phase.DECODE].tokens else Phase.PROMPT

    def layers(self, phase: Phase) -> list[dict[str, Any]]:
        """Of each layer: the mean share of its neurons that fired and were computed for a token, and seconds a token.

        gpu_share, cpu_share: of the gate, up and down rows that were read, those on the GPU and the others.
        """
        counts = self.phases[phase]
        pairs = max(1, counts.tokens) * self.n_ff
        return [
            {
                "layer": layer,
                "fired": int(counts.fired[layer]) / pairs,
                "computed": int(counts.computed[layer]) / pairs,
                "gpu_share": (share := int(counts.on_device[layer]) / max(1, int(counts.products[layer]))),
                "cpu_share": 1.0 - share,
                "seconds_per_token": float(counts.seconds[layer]) / max(1, counts.tokens),
            }
            for layer in range(self.n_layer)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "neurons_per_layer": self.n_ff,
            **{
                str(phase): {"tokens": counts.tokens, "layers": self.layers(phase)}
                for phase, counts in self.phases.items()
            },
        }
