"""LLaVA's projector-only files: read into a connector, checked against what it is part of, and written again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.init_from import init_from
from sightbridge.checkpoints.mm_projector import PREFIXES, export_mm_projector, load_mm_projector
from sightbridge.cli.main import main
from sightbridge.config.model import ConnectorSettings, ModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_model
from sightbridge.models.connectors import build_connector
from small_models import LLAMA, TOWER, make_processor

MODELS = Path(__file__).parents[1] / "golden" / "llava" / "models"
VIP, PLAIN = {"input_norm": True}, {}
CHANNELS, WIDTH = {"vip_tiny": 160, "clipt5_tiny": 32}, 48


def connector(channels: int, width: int = WIDTH, **options: object) -> nn.Module:
    torch.manual_seed(5)
    return build_connector(ConnectorSettings.model_validate({"kind": "mlp", **options}), channels, 4, width)


def original(name: str) -> dict[str, Tensor]:
    return torch.load(MODELS / name / "mm_projector.bin", weights_only=True)


# --- reading ---


@pytest.mark.parametrize(("name", "options"), [("vip_tiny", VIP), ("clipt5_tiny", PLAIN)])
def test_parity_with_the_projector_inside_the_whole_model(name: str, options: dict) -> None:
    """The file of the first stage holds what the state of the whole model holds; outputs follow from the formula."""
    bridge = connector(CHANNELS[name], **options)
    taken, left = load_mm_projector(bridge, MODELS / name / "mm_projector.bin")
    whole = load_file(MODELS / name / "original_state_dict.safetensors")
    theirs = {key.split("mm_projector.")[1]: weight for key, weight in whole.items() if "mm_projector." in key}
    features = torch.randn(2, 4, CHANNELS[name])
    seen = features
    if options:
        seen = nn.functional.layer_norm(
            seen, seen.shape[-1:], theirs["clip_layernorm.weight"], theirs["clip_layernorm.bias"], eps=1e-5
        )
    inner = "final_linear." if options else ""
    hidden = nn.functional.gelu(seen @ theirs[f"{inner}0.weight"].T + theirs[f"{inner}0.bias"])
    expected = hidden @ theirs[f"{inner}2.weight"].T + theirs[f"{inner}2.bias"]
    difference = (bridge(features) - expected).abs().max().item()
    print(f"outputs of {name}'s projector: widest difference {difference:.1e}")
    assert difference < 1e-6
    assert taken == [f"connector: {sum(weight.numel() for weight in theirs.values()):,} weights"] and not left


@pytest.mark.parametrize("beginning", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_every_way_of_writing_it_is_read_in_the_connectors_own_type(
    beginning: str, suffix: str, tmp_path: Path
) -> None:
    weights = {key.replace("model.mm_projector.", beginning): w.bfloat16() for key, w in original("vip_tiny").items()}
    path = tmp_path / f"projector{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    bridge = connector(160, **VIP)
    load_mm_projector(bridge, path)
    assert torch.equal(bridge.state_dict()["layers.2.bias"], weights[f"{beginning}final_linear.2.bias"].float())


def test_llavas_first_connector_and_embeddings_beside_it(tmp_path: Path) -> None:
    """LLaVA-1 has one layer; with mm_use_im_start_end the file also holds the embeddings of two new tokens."""
    weights = {"mm_projector.weight": torch.randn(48, 32), "mm_projector.bias": torch.randn(48)}
    torch.save({**weights, "model.embed_tokens.weight": torch.zeros(3, 48)}, tmp_path / "p.bin")
    linear = build_connector(ConnectorSettings(kind="linear"), 32, 4, 48)
    _, left = load_mm_projector(linear, tmp_path / "p.bin")
    assert torch.equal(linear.state_dict()["output.weight"], weights["mm_projector.weight"])
    assert left == ["model.embed_tokens.weight: is no part of a connector"]


@pytest.mark.parametrize(
    ("bridge", "message"),
    [
        (connector(160, 64, **VIP), r"language model of width 48, the one here has 64: a 7B's does not fit a 13B"),
        (connector(32, **VIP), r"reads 160 channels, the vision tower here gives 32\. Set\s+model\.vision_tower"),
        (connector(160), r"has a LayerNorm in front, as ViP-LLaVA has.* model\.connector\.input_norm=true"),
        (connector(160, layers=3, **VIP), r"layers\.4\.bias is missing there.* model\.connector\.layers=2"),
        (
            build_connector(
                ConnectorSettings.model_validate(
                    {"kind": "qformer", "hidden_size": 8, "num_heads": 2, "num_layers": 1, "num_queries": 2}
                ),
                160,
                4,
                48,
            ),
            r"connector here is another one\. Set model\.connector\.kind=mlp",
        ),
    ],
)
def test_a_projector_of_another_base_is_told_what_it_was_made_for(bridge: nn.Module, message: str) -> None:
    before = {name: weight.clone() for name, weight in bridge.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_mm_projector(bridge, MODELS / "vip_tiny" / "mm_projector.bin")
    assert all(torch.equal(weight, before[name]) for name, weight in bridge.state_dict().items())


class Harmful:
    def __reduce__(self) -> tuple:
        return print, ("harm",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.layers.0.weight": torch.ones(2)}, r"holds no projector .*, but model\.layers\.0\.weight"),
        ({"mm_projector.0.weight": torch.zeros(0)}, "is empty. Weights saved under DeepSpeed's ZeRO-3"),
        ({"mm_projector.conv.weight": torch.zeros(2)}, "a weight that no LLaVA, LLaVA-1.5 or ViP-LLaVA projector has"),
        ([torch.ones(2)], "holds no tensors by name"),
        ({"mm_projector.0.weight": Harmful()}, "holds no tensors by name"),
    ],
)
def test_other_files_are_refused(content: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(content, tmp_path / "p.bin")
    with pytest.raises(CheckpointError, match=message):
        load_mm_projector(connector(160, **VIP), tmp_path / "p.bin")
    assert "harm" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"12345678{", b"not weights at all"])
def test_damaged_files_are_one_message(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a file of weights|damaged"):
        load_mm_projector(connector(160, **VIP), tmp_path / "p.bin")


# --- in a model, and written again ---


def make_model(options: dict, seed: int):
    layers = [-1, 0, -2, 1, -1] if options else [-1]
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": TOWER | {"hidden_size": 32}, "layers": layers, "class_token": "drop"},
            "connector": {"kind": "mlp", **options},
            "language_model": {"config": LLAMA | {"hidden_size": 48}},
            "prompt": {"template": "vicuna_v1"},
            "image": {"size": 28},
        }
    )
    return build_model(settings, seed=seed), settings


@pytest.mark.parametrize(("name", "options"), [("vip_tiny", VIP), ("clipt5_tiny", PLAIN)])
def test_from_file_to_model_folder_to_file_not_a_bit_changes(name: str, options: dict, tmp_path: Path) -> None:
    model, settings = make_model(options, seed=1)
    report = init_from(model, MODELS / name / "mm_projector.bin")
    assert len(report.taken) == 1 and not report.left
    folder = save_model(
        model, make_processor(image=settings.image), settings, tmp_path / "m", trained_parts=["connector"]
    )
    before = original(name)
    prefix = next(prefix for prefix in PREFIXES if next(iter(before)).startswith(prefix))
    for path in (tmp_path / "p.bin", tmp_path / "p.safetensors"):
        export_mm_projector(folder, path, prefix)
        after = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        assert after.keys() == before.keys()
        assert all(torch.equal(weight, before[key]) for key, weight in after.items())
    again, _ = make_model(options, seed=2)
    init_from(again, tmp_path / "p.safetensors")
    loaded, _ = load_model(folder)
    weights = loaded.connector.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in again.connector.state_dict().items())


def test_what_cannot_be_filled_or_exported(tmp_path: Path) -> None:
    model, settings = make_model(VIP, seed=1)
    with pytest.raises(CheckpointError, match=r"training\.init_parts does not ask for it"):
        init_from(model, MODELS / "vip_tiny" / "mm_projector.bin", ["language_model"])
    folder = save_model(
        model, make_processor(image=settings.image), settings, tmp_path / "m", trained_parts=["connector"]
    )
    (folder / "connector.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        export_mm_projector(folder, tmp_path / "p.bin")
    assert not (tmp_path / "p.bin").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, settings = make_model(VIP, seed=1)
    folder = save_model(
        model, make_processor(image=settings.image), settings, tmp_path / "m", trained_parts=["connector"]
    )
    with pytest.raises(SystemExit) as done:
        main(["export", str(folder), str(tmp_path), "--to", "mm_projector", "--prefix", "mm_projector."])
    assert done.value.code == 0 and "weights of the connector written to" in capsys.readouterr().out
    assert "mm_projector.final_linear.2.bias" in torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    for wrong in (["--to", "mm_projektor"], ["--to", "mm_projector", "--prefix", "projector."]):
        with pytest.raises(SystemExit) as done:
            main(["export", str(folder), str(tmp_path / "x.bin"), *wrong])
        assert done.value.code == 1
    told = capsys.readouterr().err
    assert "Did you mean 'mm_projector'?" in told and "--prefix: expected model.mm_projector. or" in told
