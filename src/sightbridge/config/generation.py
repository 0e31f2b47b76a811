"""Settings of text generation."""

from __future__ import annotations

from pydantic import Field

from sightbridge.config.base import Settings


class GenerationSettings(Settings):
    """How an answer is produced. Lengths count new tokens only; the default is greedy."""

    max_new_tokens: int = Field(64, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    num_beams: int = Field(1, ge=1, description="1 = no beam search")
    length_penalty: float = Field(1.0, description="beam search: above 1 favours long, below favours short answers")
    num_answers: int = Field(1, ge=1, description="answers per prompt (beam search or sampling)")
    sample: bool = Field(False, description="draw tokens instead of taking the likeliest")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 = no limit")
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = Field(None, description="of sampling")
    stop: list[str] = Field(default_factory=list, description="an answer ends before the first of these texts")
