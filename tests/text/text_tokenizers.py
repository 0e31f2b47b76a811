"""Tokenizers for tests: those of the golden runs and some trained on the spot."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
WORDS = "the red cup stands on a small table near two dogs and an umbrella is it full yes no what color USER ASSISTANT:"
CORPUS = [
    WORDS,
    WORDS.upper(),
    "A chat between a curious user and an assistant. Naïve café, größer? 你好 мир!",
    "\n",
] * 3
MARKS = ["<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"]


@cache
def golden_tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / name)


@cache
def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer: bpe, bpe-trimmed, bpe-bos (byte-level), unigram, unigram-eos, wordpiece."""
    family, _, variant = kind.partition("-")
    if family == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=MARKS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=variant == "trimmed")
    elif family == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=MARKS, unk_token="<unk>", show_progress=False, initial_alphabet=["\n"]
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=MARKS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    affix = {"bos": "<s> $A", "eos": "$A </s>"}.get(variant)
    if affix:
        ids = [(mark, tokenizer.token_to_id(mark)) for mark in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=affix, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token=None if family == "bpe" else "<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
