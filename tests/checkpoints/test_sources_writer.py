"""What is written is what the containers' own libraries write, and nothing that is not finite."""

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sightbridge.checkpoints.sources.base import TensorInfo
from sightbridge.checkpoints.sources.weights import Weights, open_weights
from sightbridge.checkpoints.sources.writer import (
    DTYPES,
    PADDLE_TYPES,
    write_pdparams,
    write_safetensors,
    write_sharded,
    write_torch,
)
from sightbridge.errors import CheckpointError

SHAPES = [(3, 2), (), (0, 4), (5,)]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=8),
        st.tuples(st.sampled_from(list(DTYPES)), st.sampled_from(SHAPES)),
        max_size=8,
    )
)
def test_safetensors_are_byte_for_byte_the_librarys(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in kinds.items() if name != "__metadata__"}
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    write_safetensors(folder / "ours", Weights.of(tensors))
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_only_the_named_are_written_with_notes(tmp_path: Path) -> None:
    seen: list[str] = []
    weights = Weights.of({"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1)})
    write_safetensors(tmp_path / "m", weights, ["c", "a"], metadata={"from": "here"}, on_tensor=seen.append)
    assert sorted(load_file(tmp_path / "m")) == sorted(seen) == ["a", "c"]
    assert open_weights(tmp_path / "m").extra == {"from": "here"}


def test_shards_are_huggingfaces(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": torch.full((10, 10), float(i)) for i in range(7)}
    tensors["huge"] = torch.ones(50, 50)
    paths = write_sharded(tmp_path, Weights.of(tensors), max_shard_bytes=1000)
    assert [path.name for path in paths] == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert [len(load_file(path)) for path in paths] == [2, 2, 2, 1, 1]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * (700 + 2500)}
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    again = open_weights(tmp_path)
    assert all(torch.equal(again.read(name), tensor) for name, tensor in tensors.items())


def test_transformers_reads_shards(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    assert len(write_sharded(tmp_path, Weights.of(model.state_dict()), max_shard_bytes=1500)) > 1
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_fits_is_one_file(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path / "new", Weights.of({"a": torch.ones(2)}))
    assert paths == [tmp_path / "new" / "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_refused_unless_wanted(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weights = Weights.of({"good": torch.ones(2), "bad.weight": torch.tensor([1.0, value], dtype=dtype)})
    for write in (write_safetensors, write_torch, write_pdparams):
        with pytest.raises(CheckpointError, match=r"'bad\.weight' holds NaN or infinity"):
            write(tmp_path / "m", weights)
        assert not any(tmp_path.iterdir())
        write(tmp_path / "m", weights, allow_nan=True)
        assert open_weights(tmp_path / "m").infos.keys() == weights.infos.keys()
        (tmp_path / "m").unlink()


def test_torch_file_with_a_wrapper(tmp_path: Path) -> None:
    weights = Weights.of({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.zeros(3)})
    write_torch(tmp_path / "m.pth", weights, wrapper="model", extra={"epoch": 3})
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    assert content["epoch"] == 3
    assert torch.equal(content["model"]["a"], weights.read("a"))
    write_torch(tmp_path / "m.bin", weights, ["b"])
    assert list(torch.load(tmp_path / "m.bin", weights_only=True)) == ["b"]


def test_pdparams_are_read_by_numpy(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {str(dtype): torch.ones(30, 20).to(dtype) for dtype in PADDLE_TYPES}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "wide": torch.arange(600.0).reshape(2, 300)}
    write_pdparams(tmp_path / "m.pdparams", Weights.of(tensors))
    with (tmp_path / "m.pdparams").open("rb") as file:
        content = pickle.load(file)
    assert content.pop("StructuredToParameterName@@") == {name: name for name in tensors}
    assert content["torch.bfloat16"].dtype == np.uint16
    for name, array in content.items():
        expected = tensors[name]
        expected = expected.view(torch.uint16) if expected.dtype == torch.bfloat16 else expected
        assert array.dtype == expected.numpy().dtype
        assert np.array_equal(array, expected.numpy())
    again = open_weights(tmp_path / "m.pdparams")
    assert all(torch.equal(again.read(name), tensor) for name, tensor in tensors.items())


def test_types_without_a_name_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'z' is of type torch\.complex64"):
        write_safetensors(tmp_path / "m", Weights.of({"z": torch.ones(2, dtype=torch.complex64)}))
    with pytest.raises(CheckpointError, match=r"'z' is of type torch\.float8_e5m2"):
        write_pdparams(tmp_path / "m", Weights.of({"z": torch.ones(2).to(torch.float8_e5m2)}))


class Made(Weights):
    """Ten tensors of a megabyte, none of which is there before it is read."""

    def __init__(self) -> None:
        super().__init__(
            Path("made"), "memory", {str(i): TensorInfo((1 << 18,), torch.float32, Path("x")) for i in range(10)}
        )

    def read(self, name: str) -> Tensor:
        return torch.from_numpy(np.full(1 << 18, float(name), dtype=np.float32))


@pytest.mark.parametrize("write", [write_safetensors, write_pdparams])
def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, write: object) -> None:
    assert callable(write)
    tracemalloc.start()
    write(tmp_path / "m", Made())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "m").stat().st_size > 10 << 20
    assert peak < 3 << 20
