"""Merging: what is written answers as the model with adapters did, file by file, or not at all."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from sightbridge.checkpoints import merge as merge_module
from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.merge import merge_model, merge_peft
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.generation.answer import answer
from sightbridge.models.build import build_model
from sightbridge.models.language_model import build_with_own_head, shares_head
from sightbridge.models.lora import adapter_parameters
from small_models import LLAMA, T5, TOWER, make_processor, record

PARENTS = {
    "llama": LLAMA,
    "tied_llama": LLAMA | {"tie_word_embeddings": True},
    "flan_t5": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": T5 | {"model_type": "mt5", "feed_forward_proj": "gated-gelu"},
    "gpt2": {"model_type": "gpt2", "vocab_size": 900, "n_embd": 16, "n_head": 2, "n_layer": 2},
    "bloom": {"model_type": "bloom", "vocab_size": 900, "hidden_size": 16, "n_head": 2, "n_layer": 2},
}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A language model of each kind, in several files of weights."""
    root = tmp_path_factory.mktemp("parents")
    torch.manual_seed(1)
    for name, options in PARENTS.items():
        options = dict(options)
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        if config.is_encoder_decoder:
            model = build_with_own_head(AutoModelForSeq2SeqLM, config)
            model.config.tie_word_embeddings = False
        else:
            model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(root / name, max_shard_size="60KB")
        assert len(list((root / name).glob("*.safetensors"))) > 1
    return root


def make(parents, folder, name="llama", dtype="float32", stored=False, **lora):
    """A saved model with adapters that do something, and its processor."""
    encoder_decoder = "t5" in name
    options = dict(PARENTS[name])
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": TOWER, "class_token": "drop"},
            "connector": {"kind": "linear"},
            "language_model": ({"config": options} if stored else {"source": str(parents / name)}) | {"dtype": dtype},
            "prompt": {"template": "t5_v1" if encoder_decoder else "vicuna_v1"},
            "image": {"size": 28},
            "lora": lora or {"preset": "lora_all", "r": 4},
        }
    )
    model = build_model(settings)
    stir(model)
    tokenizer = "t5" if encoder_decoder else "llama"
    processor = make_processor(settings.prompt.template, tokenizer, settings.image, encoder_decoder)
    save_model(model, processor, settings, folder, trained_parts=["connector", "language_model"])
    return model, processor


def stir(model):
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.normal_(std=0.2)


def logits(model, processor):
    batch = processor([record("a", "<image>\nWhat?", "A bus.", images=1), record("b", "Red?", "Yes, it is.")])
    with torch.no_grad():
        return model.logits(batch)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", PARENTS)
def test_a_merged_model_answers_as_the_one_with_adapters(parents, tmp_path, name, stored):
    model, processor = make(parents, tmp_path / "m", name, stored=stored)
    done = merge_model(tmp_path / "m", tmp_path / "merged")
    merged, merged_processor = load_model(tmp_path / "merged")
    assert not adapter_parameters(merged) and not (tmp_path / "merged" / "adapter").exists()
    ours, theirs = logits(merged, merged_processor), logits(model, processor)
    difference = (ours - theirs).abs().max().item()
    print(f"{name}: {done.layers} layers, maximum difference {difference:.1e}")
    assert difference <= 1e-4 * theirs.abs().max().item()
    assert merged.language_model.has_own_head == ("tied" not in name and name not in ("gpt2", "bloom"))
    assert merged.language_model.has_own_head != shares_head(merged.language_model.model)
    question = record("a", "<image>\nWhat?", images=1)
    asked = (question.images, "What is it?", GenerationSettings(max_new_tokens=12))
    assert answer(merged, merged_processor, *asked) == answer(model, processor, *asked)
    if not stored:
        assert {path.name for path in (tmp_path / "merged" / "language_model").iterdir()} == {
            path.name for path in (parents / name).iterdir()
        }, "files, index and configuration are those of the source"


def test_a_merged_folder_can_be_moved_and_be_a_source(parents, tmp_path):
    model, processor = make(parents, tmp_path / "m")
    merge_model(tmp_path / "m", tmp_path / "merged")
    (tmp_path / "merged").rename(tmp_path / "moved")
    merged, _ = load_model(tmp_path / "moved")
    torch.testing.assert_close(logits(merged, processor), logits(model, processor))
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "moved" / "language_model", dtype=torch.float32)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(fresh.state_dict()[name], merged.language_model.model.state_dict()[name])


def test_half_precision_is_merged_in_float32(parents, tmp_path):
    make(parents, tmp_path / "m", dtype="bfloat16")
    with_adapters, _ = load_model(tmp_path / "m")
    layer = with_adapters.language_model.model.model.layers[1].mlp.up_proj
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    done = merge_model(tmp_path / "m", tmp_path / "merged")
    merged, _ = load_model(tmp_path / "merged")
    weight = merged.language_model.model.model.layers[1].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16 and done.difference > 0
    full = load_file_with(parents / "llama", "model.layers.1.mlp.up_proj.weight")
    assert torch.equal(weight, (full + 16 / 4 * (b @ a)).to(torch.bfloat16))


def test_a_file_in_half_may_be_of_a_model_held_in_full(parents, tmp_path):
    AutoModelForCausalLM.from_pretrained(parents / "llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "llama")
    model, processor = make(tmp_path, tmp_path / "m", dtype="float32")
    merge_model(tmp_path / "m", tmp_path / "merged")
    merged, _ = load_model(tmp_path / "merged")
    ours, theirs = logits(merged, processor), logits(model, processor)
    assert 1e-3 < (ours - theirs).norm() / theirs.norm() < 0.1
    files = (tmp_path / "merged" / "language_model").glob("*.safetensors")
    assert {weight.dtype for path in files for weight in load_file(path).values()} == {torch.bfloat16}


def load_file_with(folder, key):
    return next(weights[key] for path in folder.glob("*.safetensors") if key in (weights := load_file(path)))


@pytest.mark.parametrize("name", ["flan_t5", "tied_llama", "gpt2"])
@pytest.mark.parametrize("format", ["safetensors", "bin", "one bin"])
def test_a_bare_peft_folder_is_merged_into_a_bare_model(parents, tmp_path, name, format):
    source = parents / name
    auto_class = AutoModelForSeq2SeqLM if "t5" in name else AutoModelForCausalLM
    model = auto_class.from_pretrained(source, dtype=torch.float32)
    if format != "safetensors":
        source = as_bin(source, tmp_path / "bin", model.state_dict(), several=format == "bin")
    targets = {"flan_t5": ["q", "wi_0"], "tied_llama": ["q_proj", "up_proj"], "gpt2": ["c_attn", "c_proj"]}[name]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, use_rslora=True, target_modules=targets))
    stir(adapted)
    adapted.eval().save_pretrained(tmp_path / "peft")
    done = merge_peft(source, tmp_path / "peft", tmp_path / "out")
    merged = auto_class.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.arange(3, 15).view(1, -1)
    extra = {"decoder_input_ids": ids} if "t5" in name else {}
    with torch.no_grad():
        difference = (merged(ids, **extra).logits - adapted(input_ids=ids, **extra).logits).abs().max().item()
    print(f"{name} {format}: {done.layers} layers, maximum difference {difference:.1e}")
    assert difference < 1e-4 and (name != "flan_t5" or not shares_head(merged))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in source.iterdir()}


def as_bin(source, target, state, several):
    """A folder as older releases wrote it; T5's table stands in one file under three names."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    if not several:
        torch.save(state, target / "pytorch_model.bin")
        return target
    names = sorted(state)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, target / file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return target


def peft_folder(parents, folder, **changes):
    model = AutoModelForCausalLM.from_pretrained(parents / "llama", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    stir(adapted)
    adapted.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"bias": "all"}, "bias all"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 3}, "has rank 2, but the configuration says 3"),
        ({"peft_type": "LOHA"}, "of type 'LOHA'"),
    ],
)
def test_adapters_that_are_more_than_a_sum_are_refused(parents, tmp_path, changes, message):
    folder = peft_folder(parents, tmp_path / "peft", **changes)
    with pytest.raises(CheckpointError, match=message):
        merge_peft(parents / "llama", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_merge_is_seen_by_its_answers(parents, tmp_path, monkeypatch):
    class Transposing(merge_module.Adapter):
        def merged(self, module, weight):
            return super().merged(module, weight.T).T.contiguous()

    monkeypatch.setattr(merge_module, "Adapter", Transposing)
    with pytest.raises(CheckpointError, match="answers otherwise than the one with adapters"):
        merge_peft(parents / "llama", peft_folder(parents, tmp_path / "peft"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_and_folders_that_do_not_belong_together(parents, tmp_path):
    folder = peft_folder(parents, tmp_path / "peft")
    with pytest.raises(CheckpointError, match=r"has no weight 'model.layers.*another language model"):
        merge_module.merge_shards(parents / "gpt2", merge_module.Adapter(folder), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises(CheckpointError, match="choose a new or empty folder"):
        merge_peft(parents / "llama", folder, tmp_path / "full")
    with pytest.raises(CheckpointError, match="no folder here and is not in the cache"):
        merge_peft("nobody/nothing", folder, tmp_path / "out")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"'base_model.model.lm_head.weight' is not one of a pair"):
        merge_peft(parents / "llama", folder, tmp_path / "out")
    make(parents, tmp_path / "m")
    merge_model(tmp_path / "m", tmp_path / "merged")
    with pytest.raises(CheckpointError, match="has no adapters, so there is nothing to merge"):
        merge_model(tmp_path / "merged", tmp_path / "again")


def test_a_hostile_index_or_pickle_is_refused(parents, tmp_path):
    folder = peft_folder(parents, tmp_path / "peft")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes((parents / "llama" / "config.json").read_bytes())
    (base / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../secret.bin"}}')
    with pytest.raises(CheckpointError, match=r"names '../../secret.bin'"):
        merge_module.merge_shards(base, merge_module.Adapter(folder), tmp_path / "out")
    (base / "pytorch_model.bin.index.json").unlink()
    torch.save({"a": print}, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a readable file of weights"):
        merge_module.merge_shards(base, merge_module.Adapter(folder), tmp_path / "out")
