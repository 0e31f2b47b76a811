"""Two processes that work together, forked from one that has already imported what they need.

A new interpreter takes seconds to import torch and transformers, which is most of what such a test would take.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

PRELOADED = (
    "accelerate",
    "peft",
    "torch.distributed.fsdp",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "sightbridge.training.run",
)


def start_two(launcher: Mapping[str, str], function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in two processes as torchrun would start them, and wait until both are done.

    ``launcher`` is what else a launcher puts into their environment; ``function`` must be importable by its name. The
    first error of either fails the test.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **launcher}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    errors = context.SimpleQueue()
    ranks = [environment | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    started = [context.Process(target=_call, args=(rank, errors, function, arguments), daemon=True) for rank in ranks]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=600)
    for process in started:
        process.kill()
    told = []
    while not errors.empty():
        told.append(errors.get())
    assert [process.exitcode for process in started] == [0, 0], "\n".join(told)


def _call(
    environment: Mapping[str, str], errors: SimpleQueue[str], function: Callable[..., object], arguments: tuple[Any]
) -> None:
    for key in [key for key in os.environ if key.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[key]
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except BaseException:
        errors.put(traceback.format_exc())
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
