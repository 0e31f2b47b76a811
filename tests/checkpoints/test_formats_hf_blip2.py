"""transformers' BLIP-2 folders, as it writes them today and as they lay on the hub in 2023, compute the same here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import assert_same, find, gap, model_of, slots_in_front
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from sightbridge.batch import QFormerBatch
from sightbridge.checkpoints.formats.hf_blip2 import EXTRAS
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.generation.generate import generate

IMAGE_TOKEN = 60
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-5}
QFORMER = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
QFORMER |= {"encoder_hidden_size": 24, "vocab_size": 50, "max_position_embeddings": 20}
T5 = {"d_model": 20, "d_kv": 5, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 61, "dropout_rate": 0.0}
T5 |= {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "bos_token_id": 1}
OPT = {"hidden_size": 20, "word_embed_proj_dim": 20, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT: dict[str, dict[str, Any]] = {
    "opt": {**OPT, "vocab_size": 61, "dropout": 0.0, "max_position_embeddings": 40, "eos_token_id": 58},
    "t5": {**T5, "dense_act_fn": "gelu", "tie_word_embeddings": False},
    "mt5": T5,
    "bloom": {"vocab_size": 61, "hidden_size": 20, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0},
}
TEMPLATES = {"opt": "blip2_plain", "t5": "blip2_plain_t5", "mt5": "mblip", "bloom": "mblip_bloomz"}


def fill(model: Any) -> Any:
    """Weights large enough to matter, heads of their own for T5 and mT5."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        deviation = 0.05 if name.endswith("bias") else 0.3
        parameter.data.normal_(std=deviation)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1
    if hasattr(getattr(model, "language_model", None), "shared"):
        model.language_model.lm_head.weight = torch.nn.Parameter(torch.randn(61, 20))
        model.language_model.config.tie_word_embeddings = False
    return model.eval()


def config(text: str, **changes: Any) -> Any:
    options = {
        "vision_config": VISION,
        "qformer_config": QFORMER,
        "num_query_tokens": 3,
        "image_token_index": IMAGE_TOKEN,
    }
    return Blip2Config(**{**options, "text_config": {"model_type": text, **TEXT[text]}, **changes})


@cache
def reference(text: str) -> Any:
    return fill(Blip2ForConditionalGeneration(config(text)))


@cache
def folder_of(text: str, base: Path) -> Path:
    reference(text).save_pretrained(base / text)
    return base / text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_blip2")


def as_of_2023(folder: Path, out: Path) -> Path:
    """The folder as the hub had it in 2023: a .bin, whole configurations, no image_token_index."""
    out.mkdir()
    options = json.loads((folder / "config.json").read_text())
    for key in ("image_token_index", "image_token_id", "dtype"):
        options.pop(key, None)
    options["text_config"] |= {
        "torch_dtype": "float16",
        "bad_words_ids": None,
        "typical_p": 1.0,
        "tf_legacy_loss": False,
    }
    if options["text_config"]["model_type"] in ("t5", "mt5"):
        options["text_config"] |= {"tie_word_embeddings": False}
        options["text_config"].pop("scale_decoder_outputs", None)
    (out / "config.json").write_text(json.dumps(options))
    state = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    torch.save(state, out / "pytorch_model.bin")
    return out


def inputs(seed: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 28, 28, generator=draw), torch.randint(3, 55, (2, 5), generator=draw)


@torch.no_grad()
def their_logits(model: Any, pixels: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    placed = torch.cat([torch.full((2, 3), IMAGE_TOKEN), ids], dim=1)
    rest = {"labels": labels} if model.config.is_encoder_decoder else {}
    return model(pixel_values=pixels, input_ids=placed, attention_mask=torch.ones_like(placed), **rest).logits


@pytest.mark.parametrize("year", [2023, 2026])
@pytest.mark.parametrize("text", TEXT)
def test_parity_with_transformers(text: str, year: int, base: Path, tmp_path: Path) -> None:
    folder = folder_of(text, base)
    found = find(folder if year == 2026 else as_of_2023(folder, tmp_path / "old"))
    assert (found.format, found.kind) == ("hf_blip2", "generation")
    assert found.settings["prompt"]["template"] == TEMPLATES[text]
    assert found.settings["connector"]["input_norm_eps"] == 1e-5
    theirs, ours = reference(text), model_of(found)
    (pixels, ids), labels = inputs(), inputs(4)[1]
    batch = slots_in_front(ids, torch.ones_like(ids), 3, padding_id=0, pixel_values=pixels, labels=labels)
    with torch.no_grad():
        difference = gap(ours.logits(batch), their_logits(theirs, pixels, ids, labels))
    print(f"parity with transformers, {text} of {year}: logits {difference:.2e}")
    assert difference <= 1e-5
    placed = torch.cat([torch.full((2, 3), IMAGE_TOKEN), ids], dim=1)
    with torch.no_grad():
        mask = torch.ones_like(placed)
        greedy: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        their_ids = theirs.generate(pixel_values=pixels, input_ids=placed, attention_mask=mask, **greedy)[:, -6:]
    ends = theirs.generation_config.eos_token_id
    our_ids = generate(
        ours, batch, GenerationSettings(max_new_tokens=6, min_new_tokens=6), eos_ids=[ends or 1], pad_id=0
    )
    assert torch.equal(our_ids, their_ids)


def test_heads_stay_apart(base: Path) -> None:
    for text in ("t5", "mt5"):
        ours = model_of(find(folder_of(text, base)))
        assert ours.language_model.has_own_head
        assert torch.equal(ours.language_model.model.lm_head.weight, reference(text).language_model.lm_head.weight)


@pytest.mark.parametrize("text", TEXT)
def test_there_and_back_is_bit_equal(text: str, base: Path) -> None:
    theirs = open_weights(folder_of(text, base))
    tables = KeyMap.named("hf_blip2")
    assert_same(tables.to_theirs(tables.to_ours(theirs)), theirs)


def test_without_its_language_model_what_it_changes_is_kept(base: Path, tmp_path: Path) -> None:
    """As mBLIP cut BLIP-2's shard: every name but the language model's."""
    weights = open_weights(folder_of("t5", base))
    kept = {n: weights.read(n) for n in weights.infos if not n.startswith("language_model.")}
    found = find(Weights.of(kept, config=weights.config))
    assert found.settings["language_model"] == {"override": {"dense_act_fn": "gelu"}}
    assert "no language model" in found.what
    torch.save(kept, tmp_path / "blip2-flant5xl-nolm.bin")
    alone = find(tmp_path / "blip2-flant5xl-nolm.bin")
    assert alone.format == "hf_blip2"
    assert "prompt" not in alone.settings
    assert any("no epsilon" in note for note in alone.notes)
    with pytest.raises(CheckpointError, match=r"no config\.json beside it with a 'text_config'"):
        find(Weights.of({n: weights.read(n) for n in weights.infos}))


def first_stage() -> Any:
    # With a placeholder for pictures the class would cut as many words off the front of every text.
    options = {"qformer_config": {**QFORMER, "use_qformer_text_input": True}, "image_token_index": None}
    return fill(Blip2ForImageTextRetrieval(config("opt", **options, image_text_hidden_size=8)))


def test_parity_first_stage(tmp_path: Path) -> None:
    theirs = first_stage()
    theirs.save_pretrained(tmp_path)
    found = find(tmp_path)
    assert (found.format, found.kind) == ("hf_blip2", "qformer")
    assert any("writes no captions" in note and "anew at 0.07" in note for note in found.notes)
    assert not any(name.startswith("bridge.language_head") for name in found.weights.infos)
    headless = model_of(found)
    assert headless.qformer.temperature.item() == pytest.approx(0.07)
    with pytest.raises(SettingsError, match="no captioning head"):
        headless.qformer.word_logits(torch.zeros(1, 16))
    pixels, ids = inputs()
    batch = QFormerBatch(ids.clamp(max=49), torch.ones_like(ids), torch.arange(2), pixel_values=pixels)
    losses = headless(batch)
    assert losses["itg"].sum == 0
    assert {name: loss.count for name, loss in losses.items()} == batch.loss_counts

    extras = {"bridge.temperature": torch.tensor(0.05), "bridge.language_head.bias": torch.randn(50)}
    extras |= {f"bridge.language_head.transform.{n}": torch.randn(s) for n, s in HEAD.items()}
    save_file(extras, tmp_path / EXTRAS)
    found = find(tmp_path)
    assert any(EXTRAS in note for note in found.notes)
    ours = model_of(found, qformer={"dropout": 0.0})
    assert ours.qformer.temperature.item() == pytest.approx(0.05)
    pixels, ids = inputs()
    ids = ids.clamp(max=49)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        itm = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=True)
        itc = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        features = ours.vision_tower(pixels)
        ours_itm = ours.qformer.match_logits(ours.qformer.look(features), ids, mask)
        texts = ours.qformer.read_text(ids, mask)[0][:, 0]
        vectors = torch.nn.functional.normalize(
            ours.qformer.vision_projection(ours.qformer.read_pictures(features).queries), dim=-1
        )
        text = torch.nn.functional.normalize(ours.qformer.text_projection(texts), dim=-1)
        ours_itc = torch.einsum("iqd,td->itq", vectors, text).amax(dim=-1)
    gaps = gap(ours_itm, itm.logits_per_image), gap(ours_itc, itc.logits_per_image)
    print(f"parity with transformers' first stage: matching {gaps[0]:.2e}, contrastive {gaps[1]:.2e}")
    assert max(gaps) <= 1e-5


HEAD = {"dense.weight": (16, 16), "dense.bias": (16,), "LayerNorm.weight": (16,), "LayerNorm.bias": (16,)}


@pytest.mark.parametrize("text", ["t5", "opt"])
def test_parity_instructblip(text: str, tmp_path: Path) -> None:
    options = {
        "vision_config": VISION,
        "qformer_config": QFORMER,
        "num_query_tokens": 3,
        "image_token_index": IMAGE_TOKEN,
    }
    theirs = fill(
        InstructBlipForConditionalGeneration(
            InstructBlipConfig(**options, text_config={"model_type": text, **TEXT[text]})
        )
    )
    theirs.save_pretrained(tmp_path)
    found = find(tmp_path)
    connector = found.settings["connector"]
    assert (connector["text_input"], connector["text_tokenizer"]) == (True, "bert-base-uncased")
    (tmp_path / "qformer_tokenizer").mkdir()
    assert find(tmp_path).settings["connector"]["text_tokenizer"] == str(tmp_path / "qformer_tokenizer")
    ours = model_of(found)
    (pixels, ids), labels = inputs(), inputs(4)[1]
    question = inputs(5)[1].clamp(max=49)
    rest: dict[str, Any] = {"connector_ids": question, "connector_mask": torch.ones_like(question)}
    batch = slots_in_front(ids, torch.ones_like(ids), 3, padding_id=0, pixel_values=pixels, labels=labels, **rest)
    placed = torch.cat([torch.full((2, 3), IMAGE_TOKEN), ids], dim=1)
    given = {"labels": labels} if text == "t5" else {}
    with torch.no_grad():
        logits = theirs(
            pixel_values=pixels,
            qformer_input_ids=question,
            qformer_attention_mask=torch.ones_like(question),
            input_ids=placed,
            attention_mask=torch.ones_like(placed),
            **given,
        ).logits
        difference = gap(ours.logits(batch), logits)
    print(f"parity with InstructBLIP, {text}: logits {difference:.2e}")
    assert difference <= 1e-5
    tables = KeyMap.named("hf_instructblip")
    assert_same(tables.to_theirs(find(tmp_path).weights), open_weights(tmp_path))
