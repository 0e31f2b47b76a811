"""Any file of weights as named tensors that are read one at a time."""

from __future__ import annotations

from pathlib import Path

from sightbridge.checkpoints.sources.base import LEFT_OUT, StoredWeights, TensorInfo, Weights
from sightbridge.checkpoints.sources.containers import read_container, read_json
from sightbridge.checkpoints.sources.folders import read_folder
from sightbridge.errors import CheckpointError

__all__ = ["LEFT_OUT", "TensorInfo", "Weights", "open_weights"]


def open_weights(path: str | Path) -> Weights:
    """Open a file or a folder without reading a tensor, and without running anything in it.

    Files are told by their content: safetensors; ``torch.save``'s, old and new, also of Lightning and LAVIS;
    PaddlePaddle's ``.pdparams``. Folders by their files: Hugging Face's shards and their index (of a model that is
    there in two containers, the safetensors); DeepSpeed's checkpoints of ZeRO 0 to 2, or a run whose file ``latest``
    names one; a pipeline's ``layer_05-model_states.pt``, whose tensors are then named ``layer_05.`` and what they are
    called in there; otherwise all files of weights, among which a name must stand for one tensor.

    Wrappers (``model``, ``state_dict``, ``module``) and the prefix ``module.`` of all names are taken off.

    Raises:
        CheckpointError: it is missing, damaged, hostile or no file of weights.
    """
    path = Path(path).expanduser()
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder.")
    kind, tensors, extra = read_folder(path) if path.is_dir() else read_container(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    return StoredWeights(path, kind, tensors, read_json(config) if config.is_file() else None, extra)
