"""How the package reads each kind of file: as its commands do, far enough that all of the file has been believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hostile import gpuidx_cases
from hostile.torch_cases import N_EMBD, N_FF, N_LAYER

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.convert.checkpoint.safetensors_file import read_safetensors
from powerinfer_py.convert.checkpoint.torch_file import read_torch_file
from powerinfer_py.convert.checkpoint_source import CheckpointOptions, plan_checkpoint
from powerinfer_py.convert.predictor_tensors import read_predictors
from powerinfer_py.gguf import open_gguf
from powerinfer_py.placement.gpuidx import load_gpu_index
from powerinfer_py.placement.statistics.layer_files import read_activations
from powerinfer_py.tokenizer import ChatTemplate, load_tokenizer


def read_gguf(path: Path) -> None:
    with open_gguf(path) as file:
        for name, info in file.tensors.items():
            assert file.tensor_data(name).size == info.n_bytes


def read_model(path: Path) -> None:
    with LLM(path, threads=1, context_length=32) as llm:
        llm.logits([1, 2, 3])


def sample_from_model(path: Path) -> None:
    with LLM(path, threads=1, context_length=32) as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, temperature=0))


def read_tokenizer(path: Path) -> None:
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file.metadata)
    assert tokenizer.decode(tokenizer.encode("abc", add_bos=False)) == "abc"


def read_template(path: Path) -> None:
    template = ChatTemplate(json.loads(path.read_bytes()))
    try:
        template.render([{"role": "user", "content": "Hello"}])
    finally:
        template.close()


def read_checkpoint(path: Path) -> None:
    plan_checkpoint(path, None, CheckpointOptions())


def read_shard(path: Path) -> None:
    for tensor in read_torch_file(path).values():
        tensor.words()


def read_safetensors_file(path: Path) -> None:
    for tensor in read_safetensors(path).values():
        tensor.words()


READERS: dict[str, Callable[[Path], object]] = {
    "gguf": read_gguf,
    "model": read_model,
    "sampled": sample_from_model,
    "tokenizer": read_tokenizer,
    "template": read_template,
    "predictors": lambda folder: read_predictors(folder, N_LAYER, N_EMBD, N_FF),
    "activations": lambda folder: read_activations(folder, N_LAYER, N_FF),
    "torch": read_shard,
    "safetensors": read_safetensors_file,
    "checkpoint": read_checkpoint,
    "gpuidx": lambda path: load_gpu_index(path, gpuidx_cases.N_LAYER, gpuidx_cases.N_FF),
}
