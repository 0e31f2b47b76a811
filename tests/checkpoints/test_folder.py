"""Model folders: what was saved comes back bit for bit, and everything else is one clear CheckpointError."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, CLIPVisionModel

import sightbridge
from sightbridge.checkpoints import folder as folder_module
from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import load_any_model, load_model, save_model
from sightbridge.checkpoints.weights import file_hash, fingerprint, unique_tensors
from sightbridge.config.model import ModelSettings
from sightbridge.data.processor import Processor, prompt_record
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_model
from sightbridge.models.language_model import build_with_own_head
from sightbridge.text.turns import Turn
from small_models import LLAMA, T5, TOKENIZERS, TOWER

THREE_LAYERS = TOWER | {"num_hidden_layers": 3}
FLAN_T5 = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LANGUAGE_MODELS = {
    "llama": LLAMA,
    "tied_llama": LLAMA | {"tie_word_embeddings": True},
    "flan_t5": FLAN_T5,
    "t5": T5,
    "mt5": T5 | {"model_type": "mt5"},
}


def config_of(options):
    options = dict(options)
    return AutoConfig.for_model(options.pop("model_type"), **options)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Hugging Face folders: a tower and one language model of each kind, with weights of their own."""
    root = tmp_path_factory.mktemp("parents")
    torch.manual_seed(1)
    CLIPVisionModel(config_of(THREE_LAYERS)).save_pretrained(root / "tower")
    for name, options in LANGUAGE_MODELS.items():
        config = config_of(options)
        if name in ("flan_t5", "mt5"):
            model = build_with_own_head(AutoModelForSeq2SeqLM, config)
            model.config.tie_word_embeddings = False
        else:
            model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
        model.save_pretrained(root / name)
    return root


@cache
def open_tokenizer(name, legacy):
    return load_tokenizer(TOKENIZERS / name, legacy)


def make(parents, language_model="llama", tower=None, lm=None, connector=None):
    """A model on ``parents`` with a random bridge, its settings and its processor."""
    encoder_decoder = "t5" in language_model
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"source": str(parents / "tower"), "layers": [-2, 0], "class_token": "drop"}
            | (tower or {}),
            "connector": connector or {"kind": "mlp"},
            "language_model": {"source": str(parents / language_model)} | (lm or {}),
            "prompt": {"template": "t5_v1" if encoder_decoder else "vicuna_v1", "system": "Be brief."},
            "image": {"size": (tower or {}).get("image_size") or 28, "fit": "pad"},
        }
    )
    model = build_model(settings, seed=3)
    tokenizer = open_tokenizer("t5" if encoder_decoder else "llama", settings.language_model.tokenizer_legacy)
    processor = Processor(
        tokenizer,
        settings.prompt,
        settings.image,
        tokens_per_image=model.tokens_per_image,
        encoder_decoder=encoder_decoder,
    )
    return model, settings, processor


def records():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return [
        Record("0", (picture,), (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A bus."))),
        Record("1", (), (Turn("user", "Is it red?"), Turn("assistant", "Yes, it is large and red."))),
    ]


def logits(model, processor):
    with torch.no_grad():
        return model.logits(processor(records()))


def assert_same(saved, loaded):
    (model, processor), (other, other_processor) = saved, loaded
    for name, tensor in unique_tensors(model).items():
        assert torch.equal(tensor, unique_tensors(other)[name]), name
    batch, other_batch = processor(records()), other_processor(records())
    assert torch.equal(batch.input_ids, other_batch.input_ids) and torch.equal(
        batch.pixel_values, other_batch.pixel_values
    )
    assert torch.equal(logits(model, processor), logits(other, other_processor))


def edit_manifest(folder, change):
    path = folder / "sightbridge.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
@pytest.mark.parametrize("way", ["referenced", "trained", "self_contained"])
def test_round_trip_is_bit_equal(parents, tmp_path, language_model, way):
    model, settings, processor = make(parents, language_model)
    trained = {"connector", "language_model"} if way == "trained" else {"connector"}
    with torch.no_grad():
        for name in trained:
            for parameter in model.get_submodule(name).parameters():
                parameter.add_(0.01)
    save_model(
        model, processor, settings, tmp_path / "m", trained_parts=trained, self_contained=way == "self_contained"
    )
    stored = {path.stem for path in (tmp_path / "m").glob("*.safetensors")}
    everything = {"vision_tower", "connector", "language_model"}
    assert stored == {"referenced": {"connector"}, "trained": trained, "self_contained": everything}[way]
    assert_same((model, processor), load_model(tmp_path / "m"))


@pytest.mark.parametrize("language_model", ["llama", "flan_t5", "mt5"])
def test_self_contained_needs_no_source_and_saves_again(parents, tmp_path, language_model):
    copy = shutil.copytree(parents, tmp_path / "parents")
    model, settings, processor = make(copy, language_model)
    save_model(model, processor, settings, tmp_path / "a", trained_parts=["connector"], self_contained=True)
    shutil.rmtree(copy)
    loaded, loaded_processor = load_model(tmp_path / "a")
    assert_same((model, processor), (loaded, loaded_processor))
    again = describe(tmp_path / "a").manifest.settings
    save_model(loaded, loaded_processor, again, tmp_path / "b", trained_parts=["connector"])
    assert_same((model, processor), load_model(tmp_path / "b"))


@pytest.mark.parametrize("language_model", ["flan_t5", "mt5"])
def test_t5_heads_stay_apart(parents, tmp_path, language_model):
    model, settings, processor = make(parents, language_model)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"], self_contained=True)
    loaded, _ = load_model(tmp_path / "m")
    head = loaded.language_model.model.get_output_embeddings().weight
    table = loaded.language_model.model.get_input_embeddings().weight
    assert loaded.language_model.has_own_head and not torch.equal(head, table)
    assert "language_model" in {path.stem for path in (tmp_path / "m").glob("*.safetensors")}
    assert "model.lm_head.weight" in load_file(tmp_path / "m" / "language_model.safetensors")


@pytest.mark.parametrize(
    ("tower", "connector"),
    [
        ({"layers": "output", "class_token": "keep"}, {"kind": "linear"}),
        ({"layers": [-2], "image_size": 42}, {"kind": "mlp", "num_layers": 3}),
        (
            {"source": None, "config": TOWER | {"model_type": "blip_2_vision_model"}, "layers": [-1]},
            {
                "kind": "qformer",
                "num_queries": 3,
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "intermediate_size": 24,
            },
        ),
    ],
)
@pytest.mark.parametrize("self_contained", [False, True])
def test_towers_and_connectors_of_all_kinds_come_back(parents, tmp_path, tower, connector, self_contained):
    connector = {
        key: value for key, value in connector.items() if key != "num_layers" or connector["kind"] == "qformer"
    }
    model, settings, processor = make(parents, tower=tower, connector=connector)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"], self_contained=self_contained)
    assert_same((model, processor), load_model(tmp_path / "m"))


@pytest.mark.parametrize("legacy", [True, False])
def test_the_tokenizer_comes_back_as_it_was(parents, tmp_path, legacy):
    model, settings, processor = make(parents, lm={"tokenizer_legacy": legacy})
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"])
    _, loaded = load_model(tmp_path / "m")
    for text in ("a dog</s>USER: What is it?", "  two  spaces\nand a line", "Is it <image>?", "naïve 你好"):
        assert processor.tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert processor.tokenizer.pad_token_id == loaded.tokenizer.pad_token_id
    assert processor.eos_ids == loaded.eos_ids


def test_half_precision_parts_come_back_in_their_type(parents, tmp_path):
    model, settings, processor = make(parents, lm={"dtype": "bfloat16"})
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"], self_contained=True)
    loaded, _ = load_model(tmp_path / "m")
    assert loaded.language_model.model.dtype == torch.bfloat16
    assert next(loaded.connector.parameters()).dtype == torch.float32
    assert_same((model, processor), (loaded, processor))
    model.connector.to(torch.bfloat16)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"])
    loaded, _ = load_model(tmp_path / "m")
    assert next(loaded.connector.parameters()).dtype == torch.bfloat16
    assert_same((model, processor), (loaded, processor))
    assert describe(tmp_path / "m").manifest.parts["language_model"].dtype == "bfloat16"


def test_relative_sources_hold_in_another_working_directory(parents, tmp_path, monkeypatch):
    monkeypatch.chdir(parents)
    model, settings, processor = make(Path())
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"])
    monkeypatch.chdir(tmp_path)
    assert_same((model, processor), load_model("m"))


def test_a_missing_source_is_named_and_can_be_given(parents, tmp_path):
    copy = shutil.copytree(parents, tmp_path / "parents")
    model, settings, processor = make(copy)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"])
    shutil.rmtree(copy / "llama")
    with pytest.raises(CheckpointError, match=r"parents/llama.*sources=\{PART: FOLDER\}") as error:
        load_model(tmp_path / "m")
    assert "language model" in str(error.value)
    sources = {"language_model": str(parents / "llama")}
    assert_same((model, processor), load_model(tmp_path / "m", sources=sources))
    with pytest.raises(
        CheckpointError, match="'connector' is not a referenced part; those are: vision_tower, language"
    ):
        load_model(tmp_path / "m", sources={"connector": "x"})


def test_another_language_model_of_the_same_shape_is_refused(parents, tmp_path):
    model, settings, processor = make(parents)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"])
    torch.manual_seed(9)
    AutoModelForCausalLM.from_config(config_of(LLAMA)).save_pretrained(tmp_path / "cousin")
    with pytest.raises(CheckpointError, match=r"language model at .* is not the one that this model was trained with"):
        load_model(tmp_path / "m", sources={"language_model": str(tmp_path / "cousin")})


def test_fingerprint_sees_weights_and_not_names():
    torch.manual_seed(0)
    one, other = torch.nn.Linear(300, 7), torch.nn.Sequential(torch.nn.Linear(300, 7))
    assert fingerprint(one) != fingerprint(other)
    other[0].load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(one.to(torch.bfloat16))


@pytest.fixture(scope="module")
def saved_once(parents, tmp_path_factory):
    model, settings, processor = make(parents, "flan_t5")
    target = tmp_path_factory.mktemp("saved") / "m"
    return save_model(model, processor, settings, target, trained_parts=["connector"], self_contained=True)


@pytest.fixture
def saved(saved_once, tmp_path):
    """A self-contained folder with a FlanT5 that a test may damage."""
    return shutil.copytree(saved_once, tmp_path / "m")


@pytest.mark.parametrize("name", ["connector.safetensors", "language_model.safetensors", "tokenizer/tokenizer.json"])
def test_a_flipped_byte_is_noticed(saved, name):
    path = saved / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or was exchanged") as error:
        load_model(saved)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["connector.safetensors", "tokenizer/tokenizer_config.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match="is missing") as error:
        load_model(saved)
    assert str(saved / name) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "format version 2 is newer than 1.*Update sightbridge"),
        (lambda m: m.update(format="other"), "not the manifest of a model"),
        (lambda m: m.update(unknown=1), "damaged at 'unknown'"),
        (lambda m: m.update(kind=["generation"]), "damaged at 'kind'"),
        (
            lambda m: m["settings"]["connector"].pop("kind") and m["settings"].pop("prompt"),
            "damaged at 'settings.prompt'",
        ),
        (lambda m: m["parts"].pop("connector"), "expected the parts"),
        (lambda m: m["parts"]["connector"].update(file=None), "the weights of the connector have no file"),
        (lambda m: m["parts"]["language_model"].update(dtype="load"), "damaged at 'parts.language_model.dtype'"),
        (lambda m: m["parts"]["connector"].update(file="../m/connector.safetensors"), "not the name of a file inside"),
        (lambda m: m["parts"]["connector"].update(file="/etc/passwd"), "not the name of a file inside"),
        (lambda m: m["tokenizer_files"].update({"../../x": "0"}), "not the name of a file inside"),
        (lambda m: m["settings"]["language_model"]["config"].update(d_ff=40), "differently shaped: .*wi_0.weight"),
        (lambda m: m["settings"]["language_model"]["config"].update(num_layers=1), "unexpected: .*block.1"),
        (
            lambda m: m["settings"]["language_model"]["config"].update(num_decoder_layers=3),
            "missing: .*decoder.block.2",
        ),
        (lambda m: m["settings"]["language_model"]["config"].update(scale_decoder_outputs=True), "lm_head"),
    ],
)
def test_an_edited_manifest_is_noticed(saved, change, message):
    edit_manifest(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(saved)


@pytest.mark.parametrize("text", ['{"format":', "[" * 100_000])
def test_a_broken_manifest(saved, text):
    (saved / "sightbridge.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest is damaged"):
        load_model(saved)


def test_an_exchanged_file_with_a_matching_hash_is_noticed(saved):
    path = saved / "connector.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({"other" if key == name else key: tensor for key, tensor in weights.items()}, path)
    edit_manifest(saved, lambda m: m["parts"]["connector"].update(sha256=file_hash(path)))
    with pytest.raises(CheckpointError, match=f"1 missing: {name}; 1 unexpected: other"):
        load_model(saved)
    path.write_bytes(b"no safetensors at all")
    edit_manifest(saved, lambda m: m["parts"]["connector"].update(sha256=file_hash(path)))
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(saved)


def test_folders_of_another_kind(parents, saved, tmp_path):
    for path, message in [
        (tmp_path / "nowhere", "no such model folder"),
        (saved / "sightbridge.json", "is a file"),
        (parents / "llama", "looks like a Hugging Face model"),
        (tmp_path, f"Did you mean {saved}"),
        (saved / "tokenizer", "it is not a model folder"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_model(path)
        with pytest.raises(CheckpointError, match=message):
            describe(path)


def test_saving_never_deletes_what_is_not_a_model(parents, saved, tmp_path):
    model, settings, processor = make(parents)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (saved / "notes.txt").touch()
    (tmp_path / "file").touch()
    for folder, message in [
        (tmp_path / "photos", r"a\.png"),
        (saved, r"notes\.txt"),
        (tmp_path / "file", "is a file"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            save_model(model, processor, settings, folder, trained_parts=["connector"])
    (tmp_path / "empty").mkdir()
    assert load_model(save_model(model, processor, settings, tmp_path / "empty", trained_parts=["connector"]))


def test_a_failed_save_leaves_the_old_folder_and_nothing_else(parents, saved, tmp_path, monkeypatch):
    before = load_model(saved)
    model, settings, processor = make(parents)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(folder_module, "write_manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, processor, settings, saved, trained_parts=["connector"])
    assert_same(before, load_model(saved))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("moment", ["write_manifest", "rename"])
def test_a_killed_save_leaves_a_whole_folder(parents, saved, tmp_path, moment, monkeypatch):
    before = load_model(saved)
    model, settings, processor = make(parents)
    child = os.fork()
    if child == 0:  # the process that is killed
        rename = Path.rename
        if moment == "rename":  # the old folder is moved away, the new one not yet in its place
            monkeypatch.setattr(
                Path, "rename", lambda path, to: os._exit(9) if "partial" in path.name else rename(path, to)
            )
        else:
            monkeypatch.setattr(folder_module, "write_manifest", lambda *args: os._exit(9))
        save_model(model, processor, settings, saved, trained_parts=["connector"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert saved.exists() == (moment == "write_manifest")
    assert_same(before, load_model(saved))
    save_model(model, processor, settings, saved, trained_parts=["connector"])
    assert_same((model, processor), load_model(saved))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_describe_reads_no_weights(parents, tmp_path, monkeypatch):
    model, settings, processor = make(parents)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"], provenance={"steps": 7})
    (tmp_path / "m" / "connector.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(folder_module, "build_any", lambda *args: pytest.fail("built"))
    description = describe(tmp_path / "m")
    tower, connector, language_model = description.parts
    assert (tower.stored, tower.source, tower.bytes) == (False, str(parents / "tower"), None)
    assert (connector.stored, connector.source, connector.what, connector.bytes) == (True, None, "mlp", 7)
    assert (connector.trained, language_model.trained) == (True, False)
    assert language_model.parameters == sum(p.numel() for p in model.language_model.parameters())
    assert description.template == "vicuna_v1"
    assert description.manifest.provenance == {"steps": 7}
    assert description.manifest.versions["torch"].startswith("2.")


def test_the_public_api_is_lazy():
    code = (
        "import sys, sightbridge; assert 'torch' not in sys.modules; assert {'load', 'save'} <= set(dir(sightbridge))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert sightbridge.load is load_any_model and sightbridge.save is save_model
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = sightbridge.lod


def test_a_loaded_model_answers_prompts(saved):
    model, processor = load_model(saved)
    picture = np.zeros((20, 20, 3), dtype=np.uint8)
    batch = processor([prompt_record(picture, "What?"), prompt_record([], "Hello")], for_generation=True)
    with torch.no_grad():
        assert model.embed(batch).shape == (*batch.input_ids.shape, 32)
    assert not model.training
