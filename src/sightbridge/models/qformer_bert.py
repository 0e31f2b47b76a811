"""A Q-Former for the first stage that starts as a BERT, as BLIP-2's does from ``bert-base-uncased``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertForMaskedLM

from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build import quiet_transformers, resolve_source, telling_what_is_missing
from sightbridge.models.qformer_pretraining import QFormerForPretraining

SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "text_positions": "max_position_embeddings",
}
"""Our options and what BERT calls them."""


class BertStart(NamedTuple):
    """Names of weights, ours unless it says otherwise."""

    taken: list[str]
    """Read from BERT."""
    copied: list[str]
    """The queries' feed-forward, a copy of BERT's."""
    fresh: list[str]
    """Still random: what BERT has not, such as cross-attention."""
    unused: list[str]
    """BERT's, not taken: token types, of which a Q-Former has none."""

    def __str__(self) -> str:
        return (
            f"{len(self.taken)} weights from BERT, {len(self.copied)} copied from its feed-forward to the queries', "
            f"{len(self.fresh)} random, {len(self.unused)} of BERT not used"
        )


@torch.no_grad()
def load_bert(qformer: QFormerForPretraining, source: str) -> BertStart:
    """Start from a BERT with its masked-language-model head, in place.

    As LAVIS' ``init_Qformer``: embeddings, self-attention, feed-forward and head are BERT's; the vocabulary grows by
    [DEC], whose embedding and bias stay random and zero; the queries' feed-forward starts as a copy of the text's;
    cross-attention, queries, projections and the matching head keep their random weights.

    Args:
        qformer: of exactly BERT's sizes, with one word more.
        source: folder or hub name of a ``BertForMaskedLM``.

    Raises:
        SettingsError: it is no BERT, or the sizes differ.
        CheckpointError: it was not found, or has no masked-language-model head.
    """
    source = check_bert(qformer, source)
    with telling_what_is_missing(source, "qformer"), quiet_transformers():
        loaded: Any = BertForMaskedLM.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    bert, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"'{source}' lacks {len(missing)} weights of a BERT with its masked-language-model head, such as "
            f"'{missing[0]}'. Give a checkpoint of BertForMaskedLM, such as bert-base-uncased."
        )
    theirs = dict(bert.named_parameters())
    ours = dict(qformer.named_parameters())
    names = {name: our_name(name) for name in theirs}
    for name, weight in theirs.items():
        if names[name] in ours:
            fill(ours[names[name]], weight)
    copied = [name for name in ours if "_query." in name]
    for name in copied:
        ours[name].copy_(ours[name.replace("_query.", ".")])
    taken = [name for name in names.values() if name in ours]
    return BertStart(
        taken,
        copied,
        fresh=[name for name in ours if name not in taken and name not in copied],
        unused=[name for name in theirs if names[name] not in ours],
    )


def check_bert(qformer: QFormerForPretraining, source: str) -> str:
    """Return where the BERT lies, after a look at its configuration alone; errors as ``load_bert``."""
    source = resolve_source(source)
    with telling_what_is_missing(source, "qformer"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_sizes(qformer, config, source)
    return source


def check_sizes(qformer: QFormerForPretraining, config: Any, source: str) -> None:
    """Check that the Q-Former is as large as BERT, and has one word more."""
    if config.model_type != "bert":
        message = f"'{source}' is a '{config.model_type}'; a Q-Former can only start from a 'bert'."
        raise SettingsError(message, key="model.qformer")
    wanted = {ours: getattr(config, theirs) for ours, theirs in SIZES.items()}
    wanted["text_vocabulary"] = config.vocab_size + 1
    wrong = [name for name, size in wanted.items() if getattr(qformer.options, name) != size]
    if wrong:
        listed = ", ".join(f"{name} {getattr(qformer.options, name)} (BERT needs {wanted[name]})" for name in wrong)
        raise SettingsError(
            f"The Q-Former cannot start from '{source}': {listed}. The vocabulary is BERT's and one word more, [DEC].",
            key=f"model.qformer.{wrong[0]}",
        )
    if config.hidden_act != "gelu":
        message = f"'{source}' was trained with '{config.hidden_act}'; a Q-Former has the exact 'gelu'."
        raise SettingsError(message, key="model.qformer")


def our_name(name: str) -> str:
    """Our name of a weight of ``BertForMaskedLM``."""
    renamed = name.removeprefix("bert.").replace("cls.predictions.", "language_head.")
    if renamed.startswith("encoder."):
        return f"qformer.{renamed.replace('.attention.self.', '.attention.attention.')}"
    return renamed.replace("embeddings.LayerNorm.", "qformer.layernorm.")


def fill(ours: nn.Parameter, theirs: Tensor) -> None:
    """Copy a weight; a table of words fills all rows but that of [DEC]."""
    ours[: len(theirs)].copy_(theirs)
