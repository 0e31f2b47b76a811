"""A server that takes what a vLLM server takes and answers as it does, with our own language model behind it.

It reads requests as strictly as vLLM (``CompletionRequest`` and ``safe_load_prompt_embeds`` there), decodes the tensor,
and continues these embeddings by the plainest loop there is.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

NAME = "org/language-model"
KNOWN = {
    "model", "prompt_embeds", "stream", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "seed", "logprobs",
    "repetition_penalty", "ignore_eos", "stop_token_ids", "return_token_ids", "return_tokens_as_token_ids",
}  # fmt: skip


class RefusedError(Exception):
    """A request that vLLM would not take."""


class Standin:
    """What the server does, and what happened.

    ``fail``: status to refuse completions with; ``spoil``: what to write in place of the answer's events; ``pause``:
    seconds before every event; ``at_once``: tokens in one event.
    """

    def __init__(self, language_model: Any, max_model_len: int = 400) -> None:
        self.model = language_model.model
        self.width = language_model.width
        self.max_model_len = max_model_len
        self.key: str | None = None
        self.names = [NAME]
        self.fail: tuple[int, dict[str, str]] | None = None
        self.spoil: list[bytes] | None = None
        self.pause = 0.0
        self.at_once = 1
        self.asked: list[dict[str, Any]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.left = 0
        self.running = 0
        self.most_running = 0

    def read(self, body: dict[str, Any]) -> Tensor:
        """The embeddings (L, D) of a request."""
        if unknown := set(body) - KNOWN:
            raise RefusedError(f"unknown fields {unknown}")
        if body["model"] not in self.names:
            raise RefusedError(f"The model `{body['model']}` does not exist.")
        try:
            raw = base64.b64decode(body["prompt_embeds"], validate=True)
        except binascii.Error:
            raise RefusedError("`prompt_embeds` is no base64") from None
        tensor = torch.load(io.BytesIO(raw), weights_only=True)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dim() != 2:
            raise RefusedError("`prompt_embeds` must be a 2D tensor")
        if tensor.shape[1] != self.width:
            raise RefusedError(
                f"`prompt_embeds` hidden_size {tensor.shape[1]} does not match the model's {self.width}."
            )
        if not tensor.is_floating_point():
            raise RefusedError("`prompt_embeds` is not floating-point")
        assert len(raw) < tensor.numel() * tensor.element_size() + 4096, "more than the tensor was sent"
        if len(tensor) + body["max_tokens"] > self.max_model_len:
            raise RefusedError(f"This model's maximum context length is {self.max_model_len} tokens.")
        self.shapes.append(tuple(tensor.shape))
        return tensor

    @torch.no_grad()
    def tokens(self, body: dict[str, Any], embeddings: Tensor) -> Iterator[tuple[int, Tensor, str | None]]:
        """New tokens, the log-probabilities (V,) they were chosen by, and at the end the reason."""
        table = self.model.get_input_embeddings()
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        rows, written = embeddings[None].to(self.model.dtype), []
        while True:
            logits = self.model(inputs_embeds=rows).logits[0, -1].float()
            raw = logits.log_softmax(-1)
            for token in set(written):
                penalty = body["repetition_penalty"]
                logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            if len(written) < body["min_tokens"]:
                logits[body["stop_token_ids"]] = -torch.inf
            if body["temperature"]:
                noise = torch.empty_like(logits).exponential_(generator=generator)
                token = int((logits / body["temperature"]).softmax(-1).div(noise).argmax())
            else:
                token = int(logits.argmax())
            written.append(token)
            reason = "stop" if token in body["stop_token_ids"] else None
            if len(written) == body["max_tokens"]:
                reason = reason or "length"
            yield token, raw, reason
            if reason:
                return
            rows = torch.cat([rows, table(torch.tensor([[token]]))], dim=1)

    def events(self, body: dict[str, Any], embeddings: Tensor) -> Iterator[bytes]:
        """The answer as server-sent events."""
        group: list[tuple[int, Tensor]] = []
        for token, raw, reason in self.tokens(body, embeddings):
            group.append((token, raw))
            if len(group) < self.at_once and not reason:
                continue
            choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": reason, "stop_reason": None}
            choice["logprobs"] = self._logprobs(body, group)
            choice["prompt_token_ids"] = None
            choice["token_ids"] = [one for one, _ in group]
            yield _event({"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]})
            group = []
        yield _event({"id": "cmpl-1", "model": body["model"], "choices": [], "usage": {"prompt_tokens": 0}})
        yield b"data: [DONE]\n\n"

    def _logprobs(self, body: dict[str, Any], group: list[tuple[int, Tensor]]) -> Any:
        if body.get("logprobs") is None:
            return None
        assert body["return_tokens_as_token_ids"]
        tops = []
        for token, raw in group:  # the token itself first, then the likeliest, as vLLM orders them
            values, ids = raw.topk(max(body["logprobs"], 1))
            likeliest = dict(zip(ids.tolist(), values.tolist(), strict=True)) if body["logprobs"] else {}
            tops.append({f"token_id:{one}": v for one, v in ({token: float(raw[token])} | likeliest).items()})
        return {
            "tokens": [f"token_id:{token}" for token, _ in group],
            "token_logprobs": [float(raw[token]) for token, raw in group],
            "top_logprobs": tops,
            "text_offset": [0] * len(group),
        }


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


@contextmanager
def standin(language_model: Any, **options: Any) -> Iterator[tuple[Standin, str]]:
    """Run a stand-in on loopback; gives it and its URL."""
    behind = Standin(language_model, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self.tell(404, {"detail": "Not Found"})
            elif behind.key and self.headers["Authorization"] != f"Bearer {behind.key}":
                self.tell(401, {"error": "Unauthorized"})
            else:
                models = [{"id": name, "max_model_len": behind.max_model_len} for name in behind.names]
                self.tell(200, {"object": "list", "data": models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behind.asked.append(body)
            if behind.fail:
                self.tell(behind.fail[0], {"error": {"message": "said there"}}, behind.fail[1])
                return
            try:
                embeddings = behind.read(body)
            except RefusedError as refused:
                self.tell(400, {"error": {"message": str(refused), "type": "BadRequestError", "code": 400}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            behind.running += 1
            behind.most_running = max(behind.running, behind.most_running)
            try:
                for event in behind.spoil if behind.spoil is not None else behind.events(body, embeddings):
                    time.sleep(behind.pause)
                    self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                behind.left += 1
                self.close_connection = True
            finally:
                behind.running -= 1

        def tell(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Who leaves in the middle resets the connection.
    server.handle_error = lambda *args, **options: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield behind, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
