"""Files of BLIP-2's family made into model folders, which then give what was recorded of the originals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blip2_files import GOLDEN, check, find, gap, slots_in_front
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from export_models import save_stage1
from foreign_files import BLIP2_HEADS, OPT_HEADS, STAGE1_HEADS, TOWER_HEADS, lavis, write_lavis, write_tokenizer
from sightbridge.batch import IGNORE_INDEX, QFormerBatch
from sightbridge.checkpoints.convert import convert
from sightbridge.checkpoints.export import export_model
from sightbridge.checkpoints.folder import load_any_model, load_model
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError, SettingsError

PADDLE = GOLDEN / "paddle"


def words(tmp_path: Path, size: int) -> str:
    return str(write_tokenizer(tmp_path / f"words-{size}", size))


def test_parity_paddlemix_folder(tmp_path: Path) -> None:
    settings = ["language_model.config.num_attention_heads=4"]
    done = convert(PADDLE, tmp_path / "out", tokenizer=words(tmp_path, 120), settings=settings)
    assert any("PaddleMIX never adds them" in note for note in done.notes)
    model, _ = load_model(done.folder)
    golden = {name: torch.from_numpy(array) for name, array in np.load(PADDLE / "ref_stage2.npz").items()}
    mask = golden["att"]
    batch = slots_in_front(golden["ids"], mask, 32, padding_id=1, pixel_values=golden["x"])
    with torch.no_grad():
        difference = gap(
            model.logits(batch)[batch.attention_mask.bool()], golden["logits"][batch.attention_mask.bool()]
        )
    print(f"parity PaddleMIX, converted: logits {difference:.2e}")
    assert difference <= 2e-6
    assert not model.language_model.config.tie_word_embeddings


def test_parity_parts_of_lavis_put_together(tmp_path: Path) -> None:
    """The tower from its own bare file, the Q-Former from the second stage's, the language model from a third."""
    state = lavis("stage2_t5")["state_dict"]
    tower = {n.removeprefix("visual_encoder."): t for n, t in state.items() if n.startswith("visual_encoder.")}
    torch.save(tower | {"norm.weight": torch.ones(48), "head.weight": torch.ones(10, 48)}, tmp_path / "eva_vit_g.pth")
    bridge = write_lavis(tmp_path / "blip2_pretrained_flant5xl.pth", "stage2_t5", ("visual_encoder.", "t5_model."))
    whole = write_lavis(tmp_path / "whole.pth", "stage2_t5")
    done = convert(
        bridge,
        tmp_path / "out",
        vision=str(tmp_path / "eva_vit_g.pth"),
        language_model=str(whole),
        tokenizer=words(tmp_path, 46),
        settings=[*BLIP2_HEADS, "image.size=56"],
    )
    assert any("left out, LAVIS does not build it: head, norm" in note for note in done.notes)
    model, _ = load_model(done.folder)
    golden = lavis("stage2_t5")
    rest = {"pixel_values": golden["image"], "labels": golden["labels"]}
    batch = slots_in_front(golden["input_ids"], golden["text_attention_mask"], 6, padding_id=0, **rest)
    check(
        "LAVIS in three files", model, batch, golden["logits"], golden["labels"] != IGNORE_INDEX, golden["loss"].item()
    )


def mblip_files(tmp_path: Path) -> tuple[Path, Path]:
    """LAVIS' recorded T5 model as mBLIP has it: what it trained, and the shard that it started from."""
    theirs = KeyMap.named("hf_blip2").to_theirs(find(Weights.of(lavis("stage2_t5")["state_dict"])).weights)
    nolm = {n: theirs.read(n) for n in theirs.infos if not n.startswith("language_model.")}
    trained = {f"model.{n}": t for n, t in nolm.items() if not n.startswith("vision_model.")}
    torch.save({"state_dict": trained, "epoch": 1, "global_step": 60663}, tmp_path / "1-60663.ckpt")
    before = {n: t if n.startswith("vision_model.") else t + 1 for n, t in nolm.items()}
    torch.save(before, tmp_path / "blip2-flant5xl-nolm.bin")
    return tmp_path / "1-60663.ckpt", tmp_path / "blip2-flant5xl-nolm.bin"


def test_parity_mblip_checkpoint_completed(tmp_path: Path) -> None:
    checkpoint, nolm = mblip_files(tmp_path)
    with pytest.raises(CheckpointError, match="only what was trained of the connector; say where the rest is"):
        convert(checkpoint, tmp_path / "none")
    done = convert(
        checkpoint,
        tmp_path / "out",
        bridge=str(nolm),
        vision=str(nolm),
        language_model=str(write_lavis(tmp_path / "whole.pth", "stage2_t5")),
        tokenizer=words(tmp_path, 46),
        settings=[*BLIP2_HEADS, "image.size=56", "prompt.template=mblip"],
    )
    assert any("vision_tower.config.layer_norm_eps=1e-5" in note for note in done.notes)
    model, processor = load_model(done.folder)
    assert processor.template.name == "mblip"
    golden = lavis("stage2_t5")
    rest = {"pixel_values": golden["image"], "labels": golden["labels"]}
    batch = slots_in_front(golden["input_ids"], golden["text_attention_mask"], 6, padding_id=0, **rest)
    check("mBLIP", model, batch, golden["logits"], golden["labels"] != IGNORE_INDEX, golden["loss"].item())


def test_minigpt4qwen_completed_by_blip2(tmp_path: Path) -> None:
    """The projection from its checkpoint, the rest of the connector from LAVIS' file, whose projection is unused."""
    torch.manual_seed(0)
    proj = {"llm_proj.weight": torch.randn(24, 32), "llm_proj.bias": torch.randn(24)}
    torch.save({"model": proj, "epoch": 9}, tmp_path / "checkpoint_9.pth")
    options: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    options["num_attention_heads"] = 4
    chat = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_key_value_heads=4, **options))
    chat.save_pretrained(tmp_path / "chat")
    write_tokenizer(tmp_path / "chat", 50)
    flant5 = write_lavis(tmp_path / "blip2_pretrained_flant5xxl.pth", "stage2_t5", ("visual_encoder.", "t5_model."))
    done = convert(
        tmp_path / "checkpoint_9.pth",
        tmp_path / "out",
        bridge=str(flant5),
        vision=str(write_lavis(tmp_path / "whole.pth", "stage2_t5")),
        language_model=str(tmp_path / "chat"),
        settings=[*BLIP2_HEADS, "image.size=56"],
    )
    loaded: Any = load_model(done.folder)
    model, processor = loaded
    assert processor.template.name == "minigpt4qwen"
    assert torch.equal(model.connector.output.weight, proj["llm_proj.weight"])
    state: dict[str, Tensor] = lavis("stage2_t5")["state_dict"]
    assert torch.equal(model.connector.queries, state["query_tokens"])
    assert torch.equal(model.connector.input_norm.weight, state["ln_vision.weight"])


def tiny_config(**options: Any) -> Blip2Config:
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    qformer = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return Blip2Config(
        vision_config={**vision, "image_size": 28, "patch_size": 14, "initializer_range": 0.2},
        qformer_config={**qformer, "encoder_hidden_size": 24, **options.pop("qformer_config", {})},
        num_query_tokens=3,
        **options,
    )


@pytest.mark.parametrize("old", [False, True])
def test_parity_hugging_face_folder(old: bool, tmp_path: Path) -> None:
    opt = {
        "hidden_size": 20,
        "word_embed_proj_dim": 20,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {"model_type": "opt", "vocab_size": 61, "dropout": 0.0, "init_std": 0.3, **opt}
    theirs = Blip2ForConditionalGeneration(tiny_config(text_config=text, image_token_index=60)).eval()
    theirs.query_tokens.data.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs", 58)
    if old:
        config = json.loads((tmp_path / "theirs" / "config.json").read_text())
        config.pop("image_token_index")
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    model, processor = load_model(convert(tmp_path / "theirs", tmp_path / "out").folder)
    assert processor.template.name == "blip2_plain"
    ids, pixels = torch.randint(3, 55, (2, 5)), torch.randn(2, 3, 28, 28)
    placed = torch.cat([torch.full((2, 3), 60), ids], dim=1)
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels, input_ids=placed, attention_mask=torch.ones_like(placed)).logits
        batch = slots_in_front(ids, torch.ones_like(ids), 3, padding_id=1, pixel_values=pixels)
        difference = gap(model.logits(batch), wanted)
    print(f"parity Hugging Face folder, converted: logits {difference:.2e}")
    assert difference <= 1e-6


def test_parity_hugging_face_first_stage(tmp_path: Path) -> None:
    options = {"vocab_size": 31, "use_qformer_text_input": True, "max_position_embeddings": 40}
    theirs = Blip2ForImageTextRetrieval(tiny_config(qformer_config=options, image_text_hidden_size=8)).eval()
    theirs.query_tokens.data.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "out", settings=[f"text.tokenizer={words(tmp_path, 30)}"])
    assert any("writes no captions" in note for note in done.notes)
    loaded: Any = load_any_model(done.folder)
    model = loaded[0]
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(1, 30, (2, 6))
    mask = torch.ones_like(ids)
    batch = QFormerBatch(ids, mask, torch.arange(2), pixel_values=pixels)
    given = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        wanted = theirs(**given, use_image_text_matching_head=True).logits_per_image
        ours = model.qformer.match_logits(model.qformer.look(model.encode_images(batch)), ids, mask)
    print(f"parity Hugging Face first stage, converted: {gap(ours, wanted):.2e}")
    assert gap(ours, wanted) <= 1e-5
    for target in ("hf", "lavis", "paddle"):
        export_model(done.folder, tmp_path / target, target)
        assert find(tmp_path / target).settings["qformer"]["captioning"] is False


def test_heads_of_no_published_width_have_to_be_said(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "checkpoint.pth", "stage2_opt_prompt")
    for settings, key in ((OPT_HEADS[1:], TOWER_HEADS), (OPT_HEADS[:2], OPT_HEADS[2]), (OPT_HEADS[::2], OPT_HEADS[1])):
        with pytest.raises(SettingsError, match=key.partition("=")[0]):
            convert(path, tmp_path / "out", settings=settings)
    with pytest.raises(SettingsError, match=r"qformer\.num_heads"):
        convert(write_lavis(tmp_path / "1.pth", "stage1_loss_plain"), tmp_path / "out", settings=STAGE1_HEADS[:1])


@pytest.mark.parametrize(("start", "other"), [("stage2_opt_prompt", "stage2_t5"), ("stage2_t5", "stage2_opt_prompt")])
def test_a_language_model_of_the_other_kind_is_refused_though_widths_agree(
    start: str, other: str, tmp_path: Path
) -> None:
    """As OPT-6.7B and FlanT5-XXL do, both of width 4096."""
    bridge = write_lavis(tmp_path / "bridge.pth", start, ("opt_model.", "t5_model."))
    whole = write_lavis(tmp_path / "whole.pth", other)
    heads = OPT_HEADS if other == "stage2_opt_prompt" else BLIP2_HEADS
    with pytest.raises(CheckpointError, match=r"bridge\.pth: the prompt template .* is for .*--language-model"):
        convert(bridge, tmp_path / "out", language_model=str(whole), tokenizer=words(tmp_path, 40), settings=heads)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = dict(lavis("stage2_opt_prompt")["state_dict"])
    state["query_tokens"] = state["query_tokens"].to(torch.int64)
    torch.save({"model": state}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"connector: 1 not of floating-point numbers: queries \(it is int64\)"):
        convert(tmp_path / "whole.pth", tmp_path / "out", tokenizer=words(tmp_path, 47), settings=OPT_HEADS)


def test_a_first_stages_own_tokenizer_is_taken(tmp_path: Path) -> None:
    save_stage1(tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "theirs", "hf")
    _, processor = load_any_model(convert(tmp_path / "theirs", tmp_path / "back").folder)
    _, first = load_any_model(tmp_path / "ours")
    assert processor.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_lavis_file_says_where_the_rest_is(tmp_path: Path) -> None:
    save_stage1(tmp_path / "ours")
    done = export_model(tmp_path / "ours", tmp_path / "theirs", "lavis")
    assert any("it stays in the model folder" in note for note in done.written.notes)
