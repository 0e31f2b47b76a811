"""An engine whose language model runs in a vLLM server: pictures and text become embeddings here, answers are read."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from threading import Lock, Thread
from typing import TypeVar

import torch

from sightbridge.data.processor import Processor
from sightbridge.errors import SettingsError, SightbridgeError
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.serving.engines.engine import REMEMBERED, EngineClosedError, QueueFull, StepError, UpstreamError
from sightbridge.serving.engines.feature_cache import FeatureCache
from sightbridge.serving.engines.prompt import Prompt, PromptMaker
from sightbridge.serving.engines.request import Request
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.serving.engines.vllm_server import RETRY_AFTER, VllmServer
from sightbridge.serving.engines.vllm_wire import write_request, write_step
from sightbridge.serving.engines.writing import Writing

FAMILIES = ("bloom", "cohere", "gpt2", "granite", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3")
"""Families whose embeddings mean the same in vLLM as in transformers: whatever scales or normalises them comes later.
Gemma's are scaled inside of the table in transformers, and behind it in vLLM."""
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class VllmEngine:
    """Answers requests to one model by way of a vLLM server; otherwise as ``Engine``.

    Prompts are made one after another in a thread of their own; as many answers as may be are read at the same time.

    Args:
        model: whose ``embed`` makes the prompts, as ``load_front`` returns it.
        processor: that came with it.
        server: that holds its language model; what it takes bounds prompt and answer.
        name: for messages and threads.
        max_batch: answers that are asked for at the same time.
        max_queue: requests that may wait.
        feature_cache_bytes: bound on the features of pictures that are kept for further questions.

    Raises:
        SettingsError: embeddings of this family mean something else there, or the server does not take them.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        server: VllmServer,
        *,
        name: str,
        max_batch: int = 16,
        max_queue: int = 64,
        feature_cache_bytes: int = 2**28,
    ) -> None:
        self.model, self.processor, self.server, self.name = model.eval(), processor, server, name
        self.max_batch, self.max_queue = max_batch, max_queue
        _check_family(model)
        table = model.language_model.model.get_input_embeddings().weight
        server.probe(model.language_model.width, table.dtype)
        self._vocabulary = len(table)
        self._cache = FeatureCache(feature_cache_bytes)
        self._prompts = PromptMaker(model, processor, self._cache)
        self._prompts.max_tokens = min(self._prompts.max_tokens, server.max_tokens or self._prompts.max_tokens)
        self._lock = Lock()
        self._accepted = self._running = 0
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._taken: deque[float] = deque(maxlen=REMEMBERED)
        self._embedding = ThreadPoolExecutor(1, f"sightbridge-embed-{name}")
        self._places = asyncio.Semaphore(max_batch)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = server.pool()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=f"sightbridge-vllm-{name}", daemon=True)
        self._thread.start()
        atexit.register(self.close, drain=False)

    @property
    def max_tokens(self) -> int:
        """Bound on prompt and answer together."""
        return self._prompts.max_tokens

    def submit(self, request: Request) -> Ticket:
        """Check a request, open its pictures in the calling thread, and queue it.

        Raises:
            SettingsError, DataError, ImageError: the request cannot be answered; see ``PromptMaker.make``. A beam
                search cannot.
            QueueFull: too many wait.
            EngineClosedError: after ``close``.
        """
        if request.settings.num_beams > 1:
            raise SettingsError(f"'{self.name}' has its answers from a vLLM server: no beam search.", key="num_beams")
        with self._lock:
            self._check_open()
        prompt = self._prompts.make(request)
        with self._lock:
            self._check_open()
            self._accepted += 1
        self._loop.call_soon_threadsafe(self._begin, prompt)
        return prompt.ticket

    def run_beside(self, work: Callable[[], Result]) -> Result:
        """Not here, where there is no more than the front of the model: raises ``SettingsError``."""
        raise SettingsError(f"'{self.name}' has its answers from a vLLM server: it gives no scores.", key="model")

    def stats(self) -> dict[str, float]:
        """Numbers now (waiting, running, features' bytes) and since the start (everything else)."""
        names = ("tokens", "prompt_tokens", "finished", "cancelled", "failed", "refused")
        return {
            "waiting": self._accepted - self._running,
            "running": self._running,
            **{name: self._counts[name] for name in names},
            "feature_hits": self._prompts.hits,
            "feature_misses": self._prompts.misses,
            "feature_bytes": self._cache.nbytes,
        }

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and end the threads; what was accepted is answered or cancelled as by ``Engine``."""
        with self._lock:
            was_closed, self._closed = self._closed, True
        if was_closed:
            return
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while drain and self._accepted and time.monotonic() < end:
            time.sleep(0.01)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._embedding.shutdown()
        atexit.unregister(self.close)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError(f"'{self.name}' is shutting down and takes no more requests.")
        if (waiting := self._accepted - self._running) >= max(self.max_queue, 1):
            self._counts["refused"] += 1
            taken = list(self._taken)
            per_answer = sum(taken) / max(len(taken), 1) / self.max_batch
            retry_after = min(max(per_answer * waiting, 1.0), 60.0)
            raise QueueFull(
                f"{waiting} requests to '{self.name}' wait already; try again in {retry_after:.0f} s.", retry_after
            )

    # Everything below runs in the event loop's thread, but for _embed.

    def _begin(self, prompt: Prompt) -> None:
        task = self._loop.create_task(self._answer(prompt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def give_up() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the answer with it
                self._loop.call_soon_threadsafe(task.cancel)

        prompt.ticket.on_cancel(give_up)

    async def _answer(self, prompt: Prompt) -> None:
        """Have one request answered; whatever happens is told to its ticket."""
        row = Writing(prompt, self._prompts.processor, torch.device("cpu"))
        try:
            async with self._places:
                self._running += 1
                try:
                    await self._write(row)
                finally:
                    self._running -= 1
        except asyncio.CancelledError:
            if not row.is_over:
                self._counts["cancelled"] += 1
                row.finish("cancelled")
        except Exception as error:
            if not row.is_over:
                self._counts["failed"] += 1
                row.fail(self._explain(error))
        finally:
            self._accepted -= 1

    async def _write(self, row: Writing) -> None:
        prompt = row.prompt
        prompt.began = time.monotonic()
        body = await self._loop.run_in_executor(self._embedding, self._embed, row)
        self._counts["prompt_tokens"] += prompt.length
        async with aclosing(self.server.steps(self._pool, body)) as steps:  # type: ignore[type-var]
            async for step in steps:
                if reason := write_step(row, step, self._vocabulary):
                    self._finish(row, reason)
                    if not step.reason:  # a text ended it, which the server does not know
                        return
        if not row.is_over:
            raise UpstreamError("The vLLM server ended the answer without a reason.")

    def _finish(self, row: Writing, reason: str) -> None:
        if reason not in ("stop", "length"):
            raise UpstreamError(f"The vLLM server ended the answer: {reason[:100]}.", 503, RETRY_AFTER)
        row.finish(reason)
        self._counts["tokens"] += len(row.ids)
        self._counts["finished"] += 1
        self._taken.append(time.monotonic() - (row.prompt.began or 0.0))

    @torch.no_grad()
    def _embed(self, row: Writing) -> bytes:
        """Make the body of the request that hands the prompt over."""
        embeddings = self.model.embed(self._prompts.batch(row.prompt))[0]
        return write_request(self.server.model, embeddings, row.prompt.request, row.eos_ids)

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, SightbridgeError):
            return error
        _log.error("a request to '%s' failed", self.name, exc_info=error)
        return StepError(f"the model failed on this request ({type(error).__name__}: {error}).")

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.aclose()


def _check_family(model: VisionLanguageModel) -> None:
    """See that embeddings which enter the layers here enter them there."""
    config = model.language_model.config
    family = config.get_text_config().model_type
    if family not in FAMILIES:
        raise SettingsError(
            f"Prompts for language models of type '{family}' are not handed to vLLM: what their embeddings mean there "
            f"is not known to be the same. Those are: {', '.join(FAMILIES)}. Leave out --engine vllm.",
            key="engine",
        )
    if model.language_model.width != config.get_text_config().hidden_size:
        raise SettingsError(
            f"The language model's embeddings have the width {model.language_model.width} and its layers "
            f"{config.get_text_config().hidden_size} (as in OPT-350m); vLLM takes no such prompts.",
            key="engine",
        )
