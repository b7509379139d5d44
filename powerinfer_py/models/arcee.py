"""arcee (AFM-4.5B): the llama graph without a gate and with a squared ReLU, `down(relu(up(h))^2)`."""

from dataclasses import replace

from powerinfer_py.config import Activation
from powerinfer_py.models.llama import LLAMA

ARCEE = replace(
    LLAMA, name="arcee", gated=False, powerinfer_activation=Activation.RELU2, dense_activation=Activation.RELU2
)
