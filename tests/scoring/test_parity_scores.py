"""VQAScore against values recorded with t2v_metrics' own classes on tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parity_golden import clip_flant5, vip_llava

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.processor import Processor
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.scoring.likelihood import AnswerLikelihood
from sightbridge.scoring.scorer import Scorer, Scores
from small_models import TOKENIZERS

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
PICTURES = GOLDEN / "pixels"
RELATIVE = 1e-4


def processor(template: str, tokenizer: str, encoder_decoder: bool) -> Processor:
    return Processor(
        load_tokenizer(TOKENIZERS / tokenizer),
        PromptSettings(template=template),
        ImageSettings(size=56, fit="pad"),
        tokens_per_image=16,
        encoder_decoder=encoder_decoder,
    )


def t5_scorer() -> Scorer:
    return Scorer(AnswerLikelihood(clip_flant5(), processor("t5_v1", "t5", True)))


def vip_scorer(keep_prefix: bool = True) -> Scorer:
    return Scorer(AnswerLikelihood(vip_llava(), processor("vicuna_v1", "llama", False), keep_prefix=keep_prefix))


def pairs() -> tuple[list[Path], list[str]]:
    rows = json.loads((GOLDEN / "scores" / "vqa_pairs.json").read_text())
    return [PICTURES / name for name, _ in rows], [text for _, text in rows]


def compare(name: str, values: torch.Tensor, expected: np.ndarray) -> None:
    difference = np.abs(values.numpy() / expected - 1).max()
    print(f"parity {name}: relative difference {difference:.2e}")
    assert difference <= RELATIVE


def test_parity_vqascore_clip_flant5() -> None:
    golden = np.load(GOLDEN / "scores" / "vqascore_t5_default.npz")
    scores: Scores = t5_scorer().pairs(*pairs(), trace=True)
    compare("VQAScore, CLIP-FlanT5", scores.values, golden["score"])
    logprobs = np.array([[token.logprob for token in tokens] for tokens in scores.tokens])
    print(f"parity VQAScore, log-probabilities: {np.abs(logprobs - golden['token_logprobs']).max():.2e}")
    np.testing.assert_allclose(logprobs, golden["token_logprobs"], rtol=1e-5)
    assert [token.text for token in scores.tokens[0]] == ["Yes", "</s>"]


def test_parity_vqascore_all_pairs() -> None:
    golden = np.load(GOLDEN / "scores" / "vqascore_t5_allpairs.npz")
    images, texts = [str(PICTURES / name) for name in golden["images"]], golden["texts"].tolist()
    compare("VQAScore, all pairs", t5_scorer()(images=images, texts=texts), golden["scores"])


@pytest.mark.parametrize("keep_prefix", [True, False])
def test_parity_vqascore_vip_llava(keep_prefix: bool) -> None:
    golden = np.load(GOLDEN / "scores" / "vqascore_vip_default.npz")
    compare("VQAScore, ViP-LLaVA", vip_scorer(keep_prefix).pairs(*pairs()), golden["score"])


def test_parity_rows_of_vip_llava() -> None:
    """The recorded rows: the same ids, and the same two of them scored."""
    golden = np.load(GOLDEN / "scores" / "vqascore_vip_default.npz")
    backend = vip_scorer().backend
    items = backend.items(pairs()[1])
    for item, ids, labels in zip(items, golden["input_ids"], golden["labels"], strict=True):
        (line,) = backend.read([item], 1)[item]
        wanted = [i for i in ids.tolist() if i != -200][: len(line.encoded.input_ids) - 16]
        assert [
            i for i, slot in zip(line.encoded.input_ids, line.encoded.image_slots, strict=True) if not slot
        ] == wanted
        assert list(line.targets) == [label for label in labels.tolist() if label != -100]
