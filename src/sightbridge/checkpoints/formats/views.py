"""Weights seen differently: under other names, or not all of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sightbridge.checkpoints.sources.base import Weights


class RenamedWeights(Weights):
    """Some weights of ``source`` under other names.

    Args:
        source: where they are read.
        names: new name -> name in ``source``.
    """

    def __init__(self, source: Weights, names: Mapping[str, str]) -> None:
        infos = {new: source.infos[old] for new, old in names.items()}
        super().__init__(source.path, source.kind, infos, source.config, source.extra)
        self._source = source
        self._names = names

    def read(self, name: str) -> Tensor:
        """Read it under its name in the source."""
        if name not in self._names:
            raise self.unknown(name)
        return self._source.read(self._names[name])

    def close(self) -> None:
        """Close the source."""
        self._source.close()
