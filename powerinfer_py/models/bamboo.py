"""bamboo: the llama graph with dReLU, `down(relu(gate(h)) * relu(up(h)))`."""

from dataclasses import replace

from powerinfer_py.config import Activation
from powerinfer_py.models.llama import LLAMA

BAMBOO = replace(LLAMA, name="bamboo", powerinfer_activation=Activation.DRELU, dense_activation=Activation.DRELU)
