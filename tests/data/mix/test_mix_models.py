"""Translation by a model: a random one with NLLB's tokenizer, and a T5 that is told the languages in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mix_files import build, captions, write

from sightbridge.data.mix.settings import TranslatorSettings
from sightbridge.data.mix.translate import ModelTranslator
from sightbridge.errors import SettingsError

T5_TOKENIZER = Path(__file__).parents[2] / "golden" / "llava" / "tokenizers" / "t5"


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as NLLB's, with a small vocabulary and random weights."""
    import torch
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    folder = tmp_path_factory.mktemp("models") / "nllb"
    letters = ["▁", *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,?:"]
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        init_std=1.0,  # lively enough to answer differently to different texts and languages
    )
    model = M2M100ForConditionalGeneration(config)
    with torch.no_grad():  # letters are likelier than languages' tokens, so that random weights do say something
        model.get_input_embeddings().weight[len(letters) + 4 :] *= 0.3
        model.get_input_embeddings().weight[:4] *= 0.3
    model.save_pretrained(folder)
    return folder


def translator(folder: Path, **given: Any) -> ModelTranslator:
    settings = TranslatorSettings(kind="model", path=str(folder), device="cpu", max_tokens=20, **given)
    return ModelTranslator(settings, folder, "en")


def test_a_batch_is_translated_as_its_texts_alone(nllb: Path) -> None:
    texts = ["A bus.", "A red cat?", "No", "A bus."]
    together = translator(nllb, batch_size=4).translate(texts, "de")
    alone = translator(nllb, batch_size=1)
    assert together == [alone.translate([text], "de")[0] for text in texts]
    assert together[0] == together[3] != together[1]
    assert translator(nllb).translate(texts, "fr") != together
    assert translator(nllb).translate(["A bus of more than twenty letters."], "de") == [None]


def test_source_and_target_reach_the_model(nllb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = translator(nllb, codes={"zh": "zho_Hans"})
    seen: list[tuple[str, str]] = []
    generate = made.model.generate

    def spy(input_ids: Any, forced_bos_token_id: int, **options: Any) -> Any:
        tokens = made.tokenizer.convert_ids_to_tokens([input_ids[0, 0].item(), forced_bos_token_id])
        seen.append((tokens[0], tokens[1]))
        return generate(input_ids, forced_bos_token_id=forced_bos_token_id, **options)

    monkeypatch.setattr(made.model, "generate", spy)
    made.translate(["A"], "iw")
    made.translate_back(["A"], "sw")
    made.translate(["A"], "zh")
    assert seen == [("eng_Latn", "heb_Hebr"), ("swh_Latn", "eng_Latn"), ("eng_Latn", "zho_Hans")]


def test_every_language_is_checked_before_a_weight_is_loaded(nllb: Path) -> None:
    made = translator(nllb, codes={"de": "deu_Lat"})
    with pytest.raises(SettingsError, match=r"has no language 'deu_Lat' \(German\).*Did you mean 'deu_Latn'"):
        made.check(["fr", "de"])
    assert made._model is None


def test_a_model_that_is_told_the_language_in_words(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    AutoTokenizer.from_pretrained(T5_TOKENIZER).save_pretrained(tmp_path)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=600, decoder_start_token_id=0, **sizes)).save_pretrained(tmp_path)
    made = translator(tmp_path, prefix="translate {source} to {language}: ")
    made.check(["de"])
    tokenize, options = made._prepare("en", "de")
    ids = tokenize("A bus").input_ids
    assert made.tokenizer.decode(ids, skip_special_tokens=True) == "translate English to German: A bus"
    assert options == {}
    with pytest.raises(SettingsError, match=r"has no language 'eng_Latn'.*translator.prefix"):
        translator(tmp_path).check(["de"])


def test_a_mixture_is_translated(tmp_path: Path, nllb: Path) -> None:
    write(tmp_path / "c.json", captions(12))
    part = {"kind": "captions", "path": "c.json", "templates": "captions_prompt"}
    given = {"kind": "model", "path": str(nllb), "max_tokens": 30, "device": "cpu"}
    rows, _ = build(tmp_path, part, languages=["en", "de"], translator=given)
    own = {row["image"]: row["caption"] for row in captions(12)}
    expected = ModelTranslator(TranslatorSettings.model_validate(given), nllb, "en")
    for row in rows:
        caption = own[row["image_id"]]
        is_english = row["language"] == "en"
        assert row["label"] and row["label"] == (caption if is_english else expected.translate([caption], "de")[0])
        assert row["context"] == f"Caption in {'English' if is_english else 'German'}: "
