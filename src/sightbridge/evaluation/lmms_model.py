"""A model of ours as lmms-eval asks one: answers to prompts about pictures, and likelihoods of given answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found]
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]

from sightbridge.checkpoints.folder import load_model
from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import prompt_record
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError
from sightbridge.generation.answer import answer_batch
from sightbridge.generation.generate import in_evaluation_mode
from sightbridge.scoring.pictures import find_pictures
from sightbridge.text.encode import IGNORE_INDEX
from sightbridge.text.turns import Turn

MAX_NEW_TOKENS = 1024
"""Where a task does not say it; what most models in lmms-eval take."""


class LmmsModel(lmms):
    """lmms-eval's ``--model sightbridge --model_args pretrained=FOLDER``.

    Args:
        pretrained: a model folder.
        batch_size: rows at a time.
        device: of the model; several processes take the GPU of their own.
        frames: so many pictures stand for a video.
        system: system text in place of the model's own.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        frames: int | str = 8,
        system: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if unknown := [name for name in others if name != "max_batch_size"]:
            raise SettingsError(f"--model_args: unknown {', '.join(unknown)}. Known: pretrained, frames, system")
        # without being told so, accelerate takes several processes on a machine without a GPU for single ones
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        chosen = device if torch.accelerator.is_available() and self._world_size == 1 else None
        self.device = torch.device(chosen or self.accelerator.device)
        self.batch_size, self.frames = int(batch_size), int(frames)
        self.model, self.processor = load_model(Path(pretrained), str(self.device))
        if system is not None:
            prompt = self.processor.prompt_settings.model_copy(update={"system": system})
            self.processor.prompt_settings = prompt

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer prompts, those with the same settings together."""
        groups: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[read_generation(request.args[1]).model_dump_json()].append(place)
        answers: dict[int, str] = {}
        for settings, places in groups.items():
            records = [self._record(requests[place].args[0], *requests[place].args[2:]) for place in places]
            said = answer_batch(
                self.model,
                self.processor,
                records,
                GenerationSettings.model_validate_json(settings),
                self.batch_size,
            )
            answers.update(zip(places, said, strict=True))
        for place, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args[:2], answers[place])
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The loss of each answer, summed over its tokens and its end, and whether it is what the model would say.

        The end counts so that an answer is not favoured for being the beginning of another one. A loss, not a
        likelihood: lmms-eval (0.7.3, ``process_results``) takes the smallest, as its own models return losses. And
        inside a ``GenerationResult``, as its evaluator makes a text of a pair of its own kind.
        """
        records = []
        for context, continuation, *where in (request.args for request in requests):
            said = continuation(self._document(*where[1:])) if callable(continuation) else continuation
            record = self._record(context, *where)
            records.append(replace(record, turns=(*record.turns[:-1], Turn("assistant", str(said).strip()))))
        lengths = [len(self.processor.encode(record).input_ids) for record in records]
        in_order = sorted(range(len(records)), key=lengths.__getitem__)
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(in_order), self.batch_size):
            places = in_order[start : start + self.batch_size]
            found.update(zip(places, self._likelihoods([records[place] for place in places]), strict=True))
        return [GenerationResult(found[place]) for place in range(len(records))]

    @torch.no_grad()
    def _likelihoods(self, records: Sequence[Record]) -> Iterator[tuple[float, bool]]:
        batch = self.processor(records).to(self.device)
        assert batch.labels is not None, "the records have answers"
        with in_evaluation_mode(self.model):
            logits, labels = self.model.logits(batch), batch.labels
        if not self.model.language_model.is_encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]  # position i predicts token i + 1
        for row, own in zip(logits, labels, strict=True):
            wanted = own != IGNORE_INDEX
            logprobs, targets = row[wanted].float().log_softmax(dim=-1), own[wanted]
            likeliest = bool((logprobs.argmax(dim=-1) == targets).all())
            yield -logprobs.gather(1, targets[:, None]).sum().item(), likeliest

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Tasks of several rounds are not asked."""
        raise SettingsError(
            "sightbridge in lmms-eval answers one question at a time; leave out tasks of several rounds"
        )

    def _record(self, context: str, doc_to_visual: Any = None, *where: Any) -> Record:
        """A prompt with its pictures; without a document (lmms-eval's ``acc_mutual_info``) there are none."""
        visuals = (doc_to_visual(self._document(*where)) if where else None) or []
        record = prompt_record([picture.source for picture in find_pictures(visuals, self.frames)], context)
        return replace(record, id=str(where[0]) if where else "no document")

    def _document(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]


def read_generation(given: dict[str, Any]) -> GenerationSettings:
    """Our settings of lmms-eval's ``generation_kwargs``, which are those of transformers and ``until``.

    A temperature of 0 is greedy. What is set to null, and what concerns other models, does not count.
    """
    until = given.get("until") or []
    temperature = given.get("temperature") or 0.0
    sample = bool(given.get("do_sample", temperature > 0)) and temperature > 0
    known = {
        "max_new_tokens": given.get("max_new_tokens") or MAX_NEW_TOKENS,
        "num_beams": given.get("num_beams") or 1,
        "sample": sample,
        "temperature": temperature if sample else 1.0,
        "top_p": (given.get("top_p") or 1.0) if sample else 1.0,
        "stop": [text for text in ([until] if isinstance(until, str) else until) if text],
    }
    return GenerationSettings.model_validate(known)
