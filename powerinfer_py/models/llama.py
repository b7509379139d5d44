"""llama: ReluLLaMA, ProSparse, MiniCPM-S and other ReGLU models of the Llama family; dense files are SiLU.

Pre-norm RMSNorm, RoPE over adjacent pairs (GGUF stores q and k permuted for it), grouped-query attention,
`down(act(gate(h)) * up(h))`.
"""

from powerinfer_py.config import Activation
from powerinfer_py.models.architecture import Architecture, NormKind, PositionKind

LLAMA = Architecture(
    name="llama",
    norm=NormKind.RMS,
    positions=PositionKind.ROPE_ADJACENT,
    gated=True,
    powerinfer_activation=Activation.RELU,
    dense_activation=Activation.SILU,
)
