"""Settings of a mixture: which raw files, as which instructions, in which languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from sightbridge.config.base import Settings
from sightbridge.config.load import read_tree
from sightbridge.config.problems import validate
from sightbridge.errors import SettingsError, nearest

MIXES = Path(__file__).parent / "mixes"
"""Folder of the shipped mixtures; ``mblip_v2.yaml`` in it has the name ``mblip_v2``."""

Languages = str | list[str] | dict[str, float]


class TranslatorSettings(Settings):
    """Where translations come from."""

    kind: Literal["identity", "file", "model"] = Field(
        description="identity: texts stay as they are; file: a table made beforehand; model: a Hugging Face seq2seq "
        "folder such as NLLB's"
    )
    path: str | None = Field(
        default=None,
        description="file: a folder of LANGUAGE.json ({source: translation}) or LANGUAGE.tsv, or one JSON file "
        "{language: {source: translation}}; model: the model's folder. Relative to root",
    )
    missing: Literal["error", "drop"] = Field(
        default="error", description="file: a text without translation stops the run, or its row is dropped and counted"
    )
    codes: dict[str, str] = Field(
        default_factory=dict, description="model: its own codes of languages; NLLB's need not be given"
    )
    prefix: str | None = Field(
        default=None,
        description="model: written before each text instead of using language tokens, with {source} and {language}: "
        "'translate {source} to {language}: '",
    )
    batch_size: int = Field(default=32, ge=1, description="model: texts at a time")
    beams: int = Field(default=1, ge=1, description="model: beams of the search")
    max_tokens: int = Field(default=256, ge=1, description="model: longest text and longest translation, in tokens")
    device: str = Field(default="auto", description="model: cpu, cuda, ...; auto = a GPU if there is one")


class PartSettings(Settings):
    """One part of the mixture: a raw file and what is made of it."""

    kind: str = Field(description="captions, matching, vqa, vqg, conversation, ... (docs/data_mix.md lists them)")
    path: str = Field(description="raw file, relative to root")
    format: str | None = Field(default=None, description="how the file is written; null = the kind's usual format")
    images: str = Field(default="", description="folder of this part's pictures inside the mixture's images")
    columns: dict[str, str] = Field(
        default_factory=dict, description="format captions: keys of the file, such as {image: img_path}"
    )
    image_name: str | None = Field(
        default=None, description="file name of a picture from its name or number: 'COCO_train2014_{:0>12}.jpg'"
    )
    annotations: str | None = Field(
        default=None, description="format vqa: annotations file; null = the official name beside the questions"
    )
    split: str | None = Field(default=None, description="format karpathy: split to take, such as train")
    classes: str | None = Field(default=None, description="format imagenet: table of class names by language")
    synsets: str | None = Field(
        default=None, description="format imagenet: folder names of the classes by their number, as lines or JSON"
    )
    passes: int = Field(default=8, ge=1, description="format imagenet: pictures per class and language")
    languages: Languages | None = Field(default=None, description="null = the kind's own, else the mixture's")
    templates: str | list[str] | None = Field(
        default=None, description="name of a shipped set of instructions, or prompts of your own; null = the kind's set"
    )
    skip: int = Field(default=0, ge=0, description="leave out the first so many samples")
    limit: int | None = Field(default=None, ge=1, description="then take only the first so many")
    sample: int | None = Field(default=None, ge=1, description="then choose so many of them at random")
    missing_pictures: Literal["error", "drop", "ignore"] | None = Field(
        default=None, description="null = the mixture's"
    )
    max_sentences: int | None = Field(
        default=None, ge=1, description="kind conversation: drop answers with more full stops (3 if not given)"
    )
    answer_language: str | None = Field(
        default=None, description="kinds vqa, vqg: what answers are written in, if not in the questions' language"
    )
    translate_answers: float = Field(
        default=0.0, ge=0, le=1, description="kinds vqa, vqg: how often the answer is translated too, where it can be"
    )
    min_answer_count: int = Field(
        default=15, ge=1, description="kinds vqa, vqg: answers given less often are not translated"
    )
    back_translation: bool = Field(
        default=True, description="kinds vqa, vqg: keep an answer's translation only if it translates back"
    )


class MixSettings(Settings):
    """A whole mixture."""

    description: str = Field(description="what it is")
    root: str = Field(default=".", description="folder that paths start from")
    images: str = Field(default=".", description="folder that pictures are named from, relative to root")
    missing_pictures: Literal["error", "drop", "ignore"] = Field(
        default="error", description="a picture that is not there stops the run, drops its rows, or is not looked for"
    )
    seed: int = Field(default=42, description="the same seed and files make the same bytes")
    source_language: str = Field(default="en", description="what raw texts are written in")
    languages: Languages = Field(
        default="registry",
        description="registry: mBLIP's 96 by their share of mC4; row: every row's own; a code, a list of codes (equal "
        "shares) or {code: share}",
    )
    min_rows: int = Field(default=0, ge=0, description="rows that each language gets of each part at least")
    names: str | dict[str, str] = Field(
        default_factory=dict, description="other names of languages in prompts: {code: name}, or a task such as xm3600"
    )
    translator: TranslatorSettings | None = Field(default=None, description="needed if texts are to be translated")
    rows: Literal["training", "evaluation"] = Field(
        default="training", description="evaluation: labels stay empty, the true answers go to text_label"
    )
    order: Literal["shuffled", "parts"] = Field(default="shuffled", description="parts: one part after the other")
    parts: dict[str, PartSettings] = Field(min_length=1, description="the parts by name")


def mix_names() -> list[str]:
    """Names of the shipped mixtures."""
    return sorted(path.stem for path in MIXES.glob("*.yaml"))


def find_mix(name: str, beside: Path | None = None) -> Path:
    """File of a shipped mixture, or a path; relative ones start from the folder ``beside`` if one is given."""
    names = mix_names()
    if name in names:
        return MIXES / f"{name}.yaml"
    path = (beside or Path()) / Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml", ".json"):
        raise SettingsError(f"mixture file '{path}' does not exist")
    raise SettingsError(
        f"unknown mixture '{name}'.{nearest(name, names)} Shipped are {', '.join(names)}; a file of "
        "your own ends in .yaml"
    )


def read_mix(name_or_path: str | Path, overrides: Sequence[str] = ()) -> MixSettings:
    """Read a mixture: a shipped one such as ``scenes``, or a YAML file, with ``base:`` and ``key=value`` overrides as
    for recipes (``parts.coco.limit=1000``; ``parts.imagenet=null`` leaves a part of the base out).

    Raises ``SettingsError`` for everything that is unknown, missing or of the wrong type.
    """
    tree = read_tree(find_mix(str(name_or_path)), overrides, find=find_mix)
    parts = tree.step("parts")
    if parts is not None and isinstance(parts.value, dict):
        parts_left = {name: part for name, part in parts.value.items() if part.value is not None}
        tree = replace(tree, value={**tree.value, "parts": replace(parts, value=parts_left)})  # type: ignore[dict-item]
    return validate(MixSettings, tree)
