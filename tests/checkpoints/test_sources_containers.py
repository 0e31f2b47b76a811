"""Every container gives the tensors that its own library would."""

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sightbridge.checkpoints.sources.weights import Weights, open_weights
from sightbridge.errors import CheckpointError

PADDLE = Path(__file__).parents[1] / "golden" / "paddle" / "tiny_blip2_full.pdparams"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
DTYPES += [torch.float8_e4m3fn, torch.uint16]


def tensors_of_all_kinds() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(12, 10, generator=generator)
    plain = {f"type.{str(dtype)[6:]}": base.to(dtype) for dtype in DTYPES}
    return plain | {
        "transposed": base.T,
        "slice": base[2:9, 3:7],
        "shared": base,
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "one": base[:1].expand(1, 10),
        "parameter": torch.nn.Parameter(base[0]),
    }


def agree(weights: Weights, tensors: dict[str, Tensor]) -> None:
    assert set(weights.infos) == set(tensors)
    for name, tensor in tensors.items():
        found = weights.read(name)
        assert found.dtype == tensor.dtype == weights.infos[name].dtype
        assert tuple(found.shape) == tuple(tensor.shape) == weights.infos[name].shape
        assert found.is_contiguous()
        assert torch.equal(found.flatten().view(torch.uint8), tensor.detach().contiguous().flatten().view(torch.uint8))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_of_torch_save(tmp_path: Path, new: bool, protocol: int) -> None:
    tensors = tensors_of_all_kinds()
    if not new:  # what came later, older files cannot hold
        tensors = {n: t for n, t in tensors.items() if t.dtype not in (torch.float8_e4m3fn, torch.uint16)}
    path = tmp_path / "any.name"
    torch.save(tensors, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    weights = open_weights(path)
    assert weights.kind == "torch"
    agree(weights, tensors)


def test_the_content_tells_the_container_and_not_the_suffix(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.bin", metadata={"format": "pt", "note": "of a test"})
    torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert open_weights(tmp_path / "x.bin").kind == "safetensors"
    assert open_weights(tmp_path / "x.bin").extra == {"format": "pt", "note": "of a test"}
    assert open_weights(tmp_path / "x.safetensors").kind == "torch"


def test_safetensors(tmp_path: Path) -> None:
    tensors = {name: t.detach().contiguous().clone() for name, t in tensors_of_all_kinds().items()}
    save_file(tensors, tmp_path / "m.safetensors")
    agree(open_weights(tmp_path / "m.safetensors"), tensors)


def test_no_memory_but_that_of_the_tensor_is_written_to(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    weights = open_weights(tmp_path / "a.pt")
    weights.read("a").zero_()
    assert weights.read("a").sum() == 3


def test_paddle_golden_file_is_numpys() -> None:
    with PADDLE.open("rb") as file:
        expected = pickle.load(file)
    expected.pop("StructuredToParameterName@@")
    weights = open_weights(PADDLE)
    assert weights.kind == "paddle"
    agree(weights, {name: torch.from_numpy(array) for name, array in expected.items()})


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "large": random.standard_normal((40, 20)).astype("f4"),
        "half": random.standard_normal((40, 20)).astype("f2"),
        "small": np.arange(6, dtype="i8").reshape(2, 3),
        "columns": np.asfortranarray(random.standard_normal((30, 20))),
        "scalar": np.array(2.5, dtype="f4"),
    }
    content = {**arrays, "pair": ("linear_0.w_0", arrays["large"]), "StructuredToParameterName@@": {"large": "w_0"}}
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(content, protocol=protocol))
    agree(
        open_weights(tmp_path / "m.pdparams"),
        {n: torch.from_numpy(a) for n, a in (arrays | {"pair": arrays["large"]}).items()},
    )


def test_paddle_stores_bfloat16_as_uint16(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0, 3e38], dtype=torch.bfloat16)
    (tmp_path / "m").write_bytes(pickle.dumps({"w": values.view(torch.uint16).numpy()}, protocol=4))
    agree(open_weights(tmp_path / "m"), {"w": values})


def test_paddle_slices_are_joined(tmp_path: Path) -> None:
    whole = np.arange(24, dtype="f4").reshape(4, 6)
    flat = whole.reshape(-1)
    content: dict[str, Any] = {"w@@.0": flat[:10], "w@@.1": flat[10:], "b": flat[:2]}
    content["UnpackBigParamInfor@@"] = {"w": {"OriginShape": (4, 6), "slices": ["w@@.0", "w@@.1"]}}
    (tmp_path / "m").write_bytes(pickle.dumps(content, protocol=2))
    agree(open_weights(tmp_path / "m"), {"w": torch.from_numpy(whole), "b": torch.from_numpy(flat[:2])})


def test_lavis_file_keeps_its_plain_settings_and_names_the_rest(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": {"run": {"lr_sched": "cosine", "amp": True, "betas": [0.9, 0.999]}},
        "scaler": None,
        "epoch": 7,
    }
    torch.save(content, tmp_path / "checkpoint_7.pth")
    weights = open_weights(tmp_path / "checkpoint_7.pth")
    agree(weights, dict(model.state_dict()))
    assert weights.extra == {
        "config": content["config"], "scaler": None, "epoch": 7, "left_out": ["optimizer"],
    }  # fmt: skip


def test_objects_beside_the_tensors_are_left_alone(tmp_path: Path) -> None:
    """Lightning pickles hyperparameters of any class."""
    beside = {"hyper_parameters": argparse.Namespace(lr=1.0), "loops": {1, 2}, "path": Path("x"), "epoch": 3}
    torch.save({"state_dict": {"w": torch.ones(2)}, **beside}, tmp_path / "last.ckpt")
    weights = open_weights(tmp_path / "last.ckpt")
    assert weights.extra == {"epoch": 3, "left_out": ["hyper_parameters", "loops", "path"]}
    agree(weights, {"w": torch.ones(2)})


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    tensors = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(1)}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "m")
    agree(open_weights(tmp_path / "m"), {"a.weight": torch.ones(2), "b": torch.zeros(1)})


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "m")
    assert set(open_weights(tmp_path / "m").infos) == {"module.a", "b"}


def test_shards_of_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(4)}, tmp_path / "model-00002-of-00002.safetensors")
    places = dict.fromkeys("ab", "model-00001-of-00002.safetensors") | {"c": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    torch.save({"other": torch.ones(1)}, tmp_path / "mm_projector.bin")
    weights = open_weights(tmp_path)
    agree(weights, {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(4)})
    assert weights.config == {"model_type": "llava"}
    assert weights.infos["c"].file.name == "model-00002-of-00002.safetensors"


def test_safetensors_are_preferred_to_the_same_model_in_bin(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    torch.save(argparse.Namespace(lr=1), tmp_path / "training_args.bin")
    agree(open_weights(tmp_path), {"a": torch.ones(2)})


def test_a_single_file_of_safetensors_is_preferred_to_shards_in_bin(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    agree(open_weights(tmp_path), {"a": torch.ones(2)})


def test_files_without_an_index_are_joined(tmp_path: Path) -> None:
    save_file({"lora": torch.ones(2), "both": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    torch.save({"projector": torch.zeros(2), "both": torch.ones(1)}, tmp_path / "non_lora_trainables.bin")
    agree(open_weights(tmp_path), {"lora": torch.ones(2), "projector": torch.zeros(2), "both": torch.ones(1)})


def test_a_name_for_two_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "checkpoint_0.pth")
    torch.save({"model": {"w": torch.zeros(2)}}, tmp_path / "checkpoint_1.pth")
    with pytest.raises(CheckpointError, match=r"'w' is another tensor than in checkpoint_0\.pth"):
        open_weights(tmp_path)


def test_deepspeed_run(tmp_path: Path) -> None:
    (tmp_path / "epoch_1").mkdir()
    states = {"module": {"llm_proj.weight": torch.ones(2, 2)}, "optimizer": None, "dp_world_size": 8}
    torch.save(states, tmp_path / "epoch_1" / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, tmp_path / "epoch_1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text("epoch_1")
    for path in (tmp_path, tmp_path / "epoch_1"):
        weights = open_weights(path)
        assert (weights.kind, weights.extra["dp_world_size"]) == ("deepspeed", 8)
        agree(weights, {"llm_proj.weight": torch.ones(2, 2)})


def test_pipeline_layers_are_one_model(tmp_path: Path) -> None:
    layers = {0: {"visionpipe.llm_proj.weight": torch.ones(2)}, 1: {}, 2: {"layer.attn.weight": torch.ones(1)}}
    for number, tensors in layers.items():
        torch.save(tensors, tmp_path / f"layer_{number:02d}-model_states.pt")
    torch.save({"module": None}, tmp_path / "mp_rank_00_model_states.pt")
    weights = open_weights(tmp_path)
    assert weights.kind == "pipeline"
    expected = {"layer_00.visionpipe.llm_proj.weight": torch.ones(2), "layer_02.layer.attn.weight": torch.ones(1)}
    agree(weights, expected)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"layer_00-model_states.pt": {}, "layer_02-model_states.pt": {"w": torch.ones(1)}}, "layer 1 of the pipeline"),
        ({"zero_pp_rank_0_mp_rank_00_model_states.pt": {"module": {}}}, r"zero_to_fp32\.py"),
        ({"mp_rank_00_model_states.pt": {"module": {"a.weight": torch.zeros(0)}}}, "ZeRO-3"),
        ({"mp_rank_00_model_states.pt": {}, "mp_rank_01_model_states.pt": {}}, "split over 2 GPUs"),
        ({"net.pt": {"net": {"w": torch.ones(1)}}}, "there are some under 'net'"),
        ({"optimizer.pt": {"w": torch.ones(1)}}, "no files of weights in this folder"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, files: dict[str, dict[str, object]], message: str) -> None:
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path)


def test_tensors_in_memory() -> None:
    with Weights.of({"a": torch.ones(2, 3).T}, config={"x": 1}) as weights:
        agree(weights, {"a": torch.ones(3, 2)})
        with pytest.raises(CheckpointError, match="no tensor 'b'"):
            weights.read("b")
