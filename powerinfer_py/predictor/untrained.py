"""SVD predictors of a whole model without any text, made layer by layer while a converter writes its file.

Without a text there is nothing to calibrate on: neurons are named down to `margin` standard deviations of what
truncation leaves out, for inputs that go everywhere alike, which real ones do not. `powerinfer-train-predictors
--method svd` is better by what it learns from a text. Invariant: one layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from powerinfer_py.convert.bands import encode
from powerinfer_py.convert.output import OutputTensor
from powerinfer_py.errors import ModelError, OptionError
from powerinfer_py.gguf import GGMLType, keys
from powerinfer_py.gguf.quantisation import Quantizer
from powerinfer_py.predictor.calibration import THRESHOLD, LowRank, nearest_in_float16
from powerinfer_py.predictor.first_rows import FirstRows, first_rows
from powerinfer_py.predictor.rank import allocate_ranks
from powerinfer_py.predictor.row_source import RowSource
from powerinfer_py.predictor.svd import svd_predictor

DEFAULT_BUDGET = 0.1
DEFAULT_MARGIN = 2.0


def untrained_svd(first: FirstRows, hidden_units: int, margin: float = DEFAULT_MARGIN) -> LowRank:
    """One layer's predictor: float32 numbers that float16 holds exactly. Raises NumericalError where not finite."""
    made = svd_predictor(first.rows, hidden_units // 2, offsets=first.offsets, margin=margin)
    return nearest_in_float16(LowRank(made.fc1, made.fc2))


class SvdPredictors:
    """What `convert.predictor_tensors.PredictorSource` asks for.

    hidden_units: of each layer, an even number, two a direction; None for what `budget`, a share of the model's bytes,
    allows. remark: told where SVD cannot be expected to be good. Raises ModelError for a model whose neurons never
    rest, OptionError for a size that does not fit it.
    """

    sparse_threshold: float | None = THRESHOLD

    def __init__(
        self,
        source: RowSource,
        *,
        hidden_units: int | None = None,
        budget: float = DEFAULT_BUDGET,
        margin: float = DEFAULT_MARGIN,
        remark: Callable[[str], None] = lambda _line: None,
    ) -> None:
        if not source.activation.is_sparse:
            raise ModelError(
                f"the activation is {source.activation}, with which every neuron fires: nothing to predict"
            )
        if not 0 < budget <= 1:
            raise OptionError(f"budget is {budget}, expected a share of the model's bytes above 0 and up to 1")
        most = 2 * source.n_embd
        if hidden_units is None:
            allowed = int(budget * source.n_bytes)
            hidden_units = min(allocate_ranks([1.0] * source.n_layer, source.n_embd, source.n_ff, allowed, most))
        if hidden_units % 2 or not 2 <= hidden_units <= most:
            raise OptionError(f"{hidden_units} hidden units, expected an even number from 2 to {most}")
        self.source = source
        self.hidden_units = hidden_units
        self._margin = margin
        self._remark = remark
        self._last: tuple[int, LowRank] | None = None

    def tensors(self, type_for: Callable[[int], GGMLType], quantise: Quantizer) -> list[OutputTensor]:
        """`fc1` (hidden_units, n_embd) and `fc2` (n_ff, hidden_units) of every layer, in this order."""
        shapes = {
            "fc1.weight": (self.hidden_units, self.source.n_embd),
            "fc2.weight": (self.source.n_ff, self.hidden_units),
        }
        planned = []
        for layer in range(self.source.n_layer):
            for name, shape in shapes.items():
                ggml_type = type_for(shape[1])
                chunks = partial(self._chunks, layer, name, ggml_type, quantise)
                planned.append(OutputTensor(keys.block_tensor(layer, name), ggml_type, shape, chunks))
        return planned

    def layer(self, layer: int) -> LowRank:
        """The layer's predictor: float32 numbers that float16 holds exactly. Raises NumericalError where not finite."""
        if self._last is None or self._last[0] != layer:
            first = first_rows(self.source, layer)
            if layer == 0 and not first.is_linear:
                self._remark("this model's firing is no linear map of its input: expect less of an SVD predictor")
            self._last = layer, untrained_svd(first, self.hidden_units, self._margin)
        return self._last[1]

    def _chunks(
        self, layer: int, name: str, ggml_type: GGMLType, quantise: Quantizer
    ) -> Iterator[npt.NDArray[np.uint8]]:
        made = self.layer(layer)
        matrix = made.fc1 if name == "fc1.weight" else made.fc2
        yield encode(keys.block_tensor(layer, name), matrix.contiguous().numpy(), ggml_type, quantise)
