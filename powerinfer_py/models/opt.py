"""opt: OPT 125M to 66B except 350M, whose post-norm graph and embedding projection differ.

LayerNorm with bias, a learned position table with an offset of 2, biases everywhere, the head tied to the embedding,
`down(relu(up(h) + b)) + b`.
"""

from powerinfer_py.config import Activation
from powerinfer_py.models.architecture import Architecture, NormKind, PositionKind

OPT = Architecture(
    name="opt",
    norm=NormKind.LAYER,
    positions=PositionKind.LEARNED,
    gated=False,
    powerinfer_activation=Activation.RELU,
    dense_activation=Activation.RELU,
    position_offset=2,
)
