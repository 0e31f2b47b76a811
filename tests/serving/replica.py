"""A server on a small model as a process of its own: ``python replica.py PORT``; it ends as ``sightbridge serve`` does.

Who starts it names the folders of the tests in ``PYTHONPATH``.
"""

from __future__ import annotations

import sys

import torch
from engine_requests import model_of, processor_of

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.api.app import make_state
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.engines.engine import Engine
from sightbridge.serving.server import open_port, run_server


def main() -> None:
    torch.set_num_threads(1)
    model, processor = model_of("llama"), processor_of("llama")
    engine = Engine(model, processor, name="small", max_batch=8, max_queue=64)
    served = ServedModel("small", model, processor, engine, OneAtATime("small", 4))
    run_server(make_state([served], ServingSettings()), open_port("127.0.0.1", int(sys.argv[1])))


if __name__ == "__main__":
    main()
