"""`.pt` files from strangers: what is taken and what is refused, without running or inflating anything."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from powerinfer_py.errors import FileFormatError
from powerinfer_py.tensor_files import load_state, load_tensor


def saved(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "file.pt"
    torch.save(value, path)
    return path


def test_plain_tensor_and_state(tmp_path: Path) -> None:
    tensor = torch.arange(7)
    assert torch.equal(load_tensor(saved(tmp_path, tensor)), tensor)
    state = load_state(saved(tmp_path, {"fc1.weight": torch.ones(2, 3), "fc2.weight": torch.zeros(4, 2)}))
    assert list(state) == ["fc1.weight", "fc2.weight"]


def test_saved_parameters_come_without_their_gradient(tmp_path: Path) -> None:
    """numpy refuses a tensor that takes part in training; those of a module that was saved whole do."""
    parameter = torch.nn.Parameter(torch.ones(3))
    assert load_tensor(saved(tmp_path, parameter)).numpy().tolist() == [1, 1, 1]
    assert load_state(saved(tmp_path, {"fc1.weight": parameter}))["fc1.weight"].numpy().tolist() == [1, 1, 1]


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_code_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    with pytest.raises(FileFormatError):
        load_tensor(saved(tmp_path, Evil(trace)))
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(FileFormatError):
        load_tensor(plain)
    assert not trace.exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([1.0]), (3,), check_invariants=True),
        torch.zeros(1).expand(1 << 40),
        torch.zeros(8)[::2],
        torch.empty(1 << 20, device="meta"),
        [1, 2, 3],
        {"a": 1},
        None,
    ],
    ids=["sparse", "stride 0", "strided", "meta", "list", "dict", "nothing"],
)
def test_not_a_dense_tensor(tmp_path: Path, value: object) -> None:
    with pytest.raises(FileFormatError) as caught:
        load_tensor(saved(tmp_path, value))
    assert "\n" not in str(caught.value)


def test_archive_that_inflates(tmp_path: Path) -> None:
    source = saved(tmp_path, torch.zeros(1 << 20))
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(source) as honest, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in honest.infolist():
            packed.writestr(entry.filename, honest.read(entry))
    with pytest.raises(FileFormatError, match="inflates"):
        load_tensor(bomb)


def test_missing_empty_and_truncated(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.arange(100))
    data = path.read_bytes()
    for content in (b"", data[: len(data) // 2], b"not a model"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError):
            load_tensor(path)
    with pytest.raises(FileFormatError, match="cannot read"):
        load_tensor(tmp_path / "missing.pt")
