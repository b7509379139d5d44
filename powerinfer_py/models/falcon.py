"""falcon: ReLU-Falcon-40B and its kin; ordinary Falcon is GELU, which never rests and is not computed here.

LayerNorm, attention and FFN in parallel, RoPE over halves, one fused qkv tensor in the order queries, keys, values
(`falcon.tensor_data_layout = "jploski"`). With two norms a layer `attn_norm` feeds the FFN and `attn_norm_2` attention;
with one, it feeds both.
"""

from powerinfer_py.config import Activation
from powerinfer_py.models.architecture import Architecture, NormKind, PositionKind

FALCON = Architecture(
    name="falcon",
    norm=NormKind.LAYER,
    positions=PositionKind.ROPE_HALVES,
    gated=False,
    powerinfer_activation=Activation.RELU,
    dense_activation="gelu",
    parallel=True,
)
