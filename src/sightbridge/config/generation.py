"""Settings of text generation."""

from __future__ import annotations

from pydantic import Field, model_validator

from sightbridge.config.base import Settings


class GenerationSettings(Settings):
    """How an answer is produced. Lengths count new tokens only; the default is greedy."""

    max_new_tokens: int = Field(default=64, ge=1, description="an answer is cut after so many tokens")
    min_new_tokens: int = Field(
        default=0, ge=0, description="an answer does not end before so many tokens, unless by a stop text"
    )
    num_beams: int = Field(default=1, ge=1, le=1024, description="1 = no beam search")
    length_penalty: float = Field(
        default=1.0, description="beam search: above 1 favours long, below favours short answers"
    )
    num_answers: int = Field(default=1, ge=1, le=1024, description="answers per prompt (beam search or sampling)")
    sample: bool = Field(default=False, description="draw tokens instead of taking the likeliest")
    temperature: float = Field(default=1.0, gt=0, description="sampling: below 1 sharpens, above 1 flattens")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sampling: from the likeliest tokens that hold this probability"
    )
    top_k: int = Field(default=0, ge=0, description="sampling: from so many likeliest tokens; 0 = no limit")
    repetition_penalty: float = Field(default=1.0, gt=0, description="above 1 makes tokens already written less likely")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="of sampling")
    stop: list[str] = Field(default_factory=list, description="an answer ends before the first of these texts")

    @model_validator(mode="after")
    def _possible(self) -> GenerationSettings:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens})")
        if self.sample and self.num_beams > 1:
            raise ValueError("choose one: 'sample' draws tokens, 'num_beams' above 1 searches the likeliest ones")
        if not self.sample and self.num_answers > self.num_beams:
            raise ValueError(f"num_answers is {self.num_answers}: set sample, or num_beams to at least as many")
        if "" in self.stop:
            raise ValueError("a text in 'stop' is empty, so every answer would be")
        return self
