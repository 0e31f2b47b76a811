"""The names and calls of t2v_metrics, so that code written for it runs after its import is changed.

    import sightbridge.scoring as t2v_metrics

    score = t2v_metrics.VQAScore(model="clip-flant5-xl")
    score(images=["0.png", "1.png"], texts=["a red cup", "a blue cup"])

A model is a folder, or a name: of a folder in ``cache_dir``, or one given to ``register_model``. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.manifest import MANIFEST
from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import prompt_record
from sightbridge.errors import CheckpointError, SettingsError, nearest
from sightbridge.generation.answer import answer_batch
from sightbridge.scoring.clip import is_clip_folder
from sightbridge.scoring.likelihood import AnswerLikelihood
from sightbridge.scoring.load import load_scorer
from sightbridge.scoring.pictures import find_pictures
from sightbridge.scoring.scorer import Images, Scorer, as_list
from sightbridge.scoring.settings import Kind

CACHE_DIR = "./hf_cache/"
"""t2v_metrics' default."""
PUBLISHED = {
    "clip-flant5-xxl": "zhiqiulin/clip-flant5-xxl",
    "clip-flant5-xl": "zhiqiulin/clip-flant5-xl",
    "llava-v1.5-13b": "liuhaotian/llava-v1.5-13b",
    "llava-v1.5-7b": "liuhaotian/llava-v1.5-7b",
    "instructblip-flant5-xxl": "Salesforce/instructblip-flan-t5-xxl",
    "instructblip-flant5-xl": "Salesforce/instructblip-flan-t5-xl",
    "blip2-itm": "LAVIS' blip2_pretrained.pth",
    "blip2-itc": "LAVIS' blip2_pretrained.pth",
    "openai:ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}
"""Names that t2v_metrics fetches, and what to fetch oneself."""
_registered: dict[str, Path] = {}


def register_model(name: str, folder: str | Path) -> None:
    """Let ``name`` stand for a model folder (or the folder of a whole CLIP) in this process."""
    _registered[name] = Path(folder)


class _Score:
    """What the three classes have in common; ``scorer`` is the ``Scorer`` behind them."""

    kinds: tuple[Kind, ...] = ()

    def __init__(
        self, model: str | Path, device: str | None = None, cache_dir: str | Path = CACHE_DIR, **options: Any
    ) -> None:
        folder = find_model(model, cache_dir)
        kind = options.pop("kind", None) or (self.kinds[0] if self.kinds else None)
        if kind == "clip" and not is_clip_folder(folder):
            kind = "itc"  # t2v_metrics calls BLIP-2's similarity a CLIPScore, too
        self.scorer: Scorer = load_scorer(folder, kind, device=device, **options)
        self.model = _Model(self.scorer)

    def __call__(self, images: Images, texts: str | Sequence[str], **options: Any) -> Any:
        """Score M pictures with N texts: (M, N); options as for ``Scorer.score``."""
        return self.scorer.score(images, texts, **options)

    forward = __call__

    def batch_forward(self, dataset: Any, batch_size: int = 16, **options: Any) -> Any:
        """Score samples ``{"images": [...], "texts": [...]}``: (samples, images, texts)."""
        return self.scorer.batch_forward(dataset, batch_size, **options)


class VQAScore(_Score):
    """How probable "Yes" is when a generation model is asked whether the picture shows the text."""

    kinds = ("vqascore",)


class ITMScore(_Score):
    """The probability that picture and text match, from a model of BLIP-2's first stage."""

    kinds = ("itm",)


class CLIPScore(_Score):
    """The cosine similarity of picture and text, from a whole CLIP or a model of BLIP-2's first stage."""

    kinds = ("clip",)


class _Model:
    """``score.model``, of which code for t2v_metrics knows ``generate``."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def generate(
        self,
        images: Images,
        texts: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 256,
        **settings: Any,
    ) -> list[str]:
        """Answer the first prompt about the first picture, the second about the second, and so on."""
        backend = self.scorer.backend
        if not isinstance(backend, AnswerLikelihood):
            raise SettingsError(f"a score of kind '{backend.kind}' comes from a model that writes no text")
        asked, pictures = list(texts or prompts or ()), find_pictures(as_list(images), self.scorer.frames)
        if len(asked) != len(pictures):
            raise SettingsError(f"{len(pictures)} pictures and {len(asked)} prompts: give as many of one as the other")
        records = [prompt_record(picture.source, prompt) for picture, prompt in zip(pictures, asked, strict=True)]
        options = GenerationSettings(max_new_tokens=max_new_tokens, **settings)
        return answer_batch(backend.model, backend.processor, records, options, self.scorer.batch_size)


def get_score_model(
    model: str | Path, device: str | None = None, cache_dir: str | Path = CACHE_DIR, **options: Any
) -> Any:
    """Make the score that fits a model: vqascore, itm or clip."""
    score = _Score(model, device, cache_dir, **options)
    score.__class__ = {"itm": ITMScore, "clip": CLIPScore, "itc": CLIPScore}.get(score.scorer.backend.kind, VQAScore)
    return score


def list_all_models(cache_dir: str | Path = CACHE_DIR) -> list[str]:
    """Names that stand for a model: those registered, and the folders in ``cache_dir`` that hold one."""
    inside = Path(cache_dir).iterdir() if Path(cache_dir).is_dir() else ()
    return sorted({*_registered, *(path.name for path in inside if _is_model(path))})


def list_all_vqascore_models(cache_dir: str | Path = CACHE_DIR) -> list[str]:
    """Those of ``list_all_models`` that answer questions."""
    return _of_kind("generation", cache_dir)


def list_all_itmscore_models(cache_dir: str | Path = CACHE_DIR) -> list[str]:
    """Those of ``list_all_models`` that are of BLIP-2's first stage."""
    return _of_kind("qformer", cache_dir)


def list_all_clipscore_models(cache_dir: str | Path = CACHE_DIR) -> list[str]:
    """Those of ``list_all_models`` that compare: whole CLIPs, and models of BLIP-2's first stage."""
    return sorted([*_of_kind("clip", cache_dir), *_of_kind("qformer", cache_dir)])


def _of_kind(kind: str, cache_dir: str | Path) -> list[str]:
    return [name for name in list_all_models(cache_dir) if _kind_of(find_model(name, cache_dir)) == kind]


def _kind_of(folder: Path) -> str:
    if not (folder / MANIFEST).is_file():
        return "clip"
    from sightbridge.checkpoints.manifest import QFormerManifest, read_manifest

    return "qformer" if isinstance(read_manifest(folder), QFormerManifest) else "generation"


def _is_model(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or is_clip_folder(folder)


def find_model(model: str | Path, cache_dir: str | Path = CACHE_DIR) -> Path:
    """Return the folder that ``model`` names; raises ``CheckpointError`` with the known names for an unknown one."""
    name = str(model)
    for folder in (_registered.get(name), Path(name).expanduser(), Path(cache_dir) / name):
        if folder is not None and _is_model(folder):
            return folder
    known = list_all_models(cache_dir)
    fetch = ""
    if name in PUBLISHED:
        fetch = f" Fetch {PUBLISHED[name]}, then: sightbridge convert FETCHED {Path(cache_dir) / name}."
        fetch = f" Fetch {PUBLISHED[name]} and name its folder." if ":" in name else fetch
    raise CheckpointError(
        f"'{name}' is no model folder and no known model.{nearest(name, known)}{fetch} Known in {cache_dir}: "
        f"{', '.join(known) or 'none'}. register_model(NAME, FOLDER) adds one."
    )
