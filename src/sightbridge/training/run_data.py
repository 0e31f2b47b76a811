"""What one process of a run trains and is validated on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.data.bad_samples import BadSample, BadSamples
from sightbridge.data.dataset import RecordDataset, TrainingBatches, evaluation_batches
from sightbridge.data.feature_store import FeatureStore
from sightbridge.data.packing import pack_rows
from sightbridge.data.processor import Row
from sightbridge.data.record import Record
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.training.order import row_room
from sightbridge.training.preflight import Checked
from sightbridge.training.qformer_validation import validate_qformer
from sightbridge.training.sharding import in_lockstep


class RunData:
    """Batches for training and validation, this process's share of them, and the bad samples found on the way.

    Args:
        recipe: of the run.
        checked: its usable records.
        folder: of the run; bad samples are listed in it (by every process in a file of its own).
        accelerator: knows which process this is.
        features: stored output of what is frozen, if there is any.
    """

    def __init__(
        self,
        recipe: ModelRecipe,
        checked: Checked,
        folder: Path,
        accelerator: Accelerator,
        features: FeatureStore | None,
    ) -> None:
        self.recipe = recipe
        self.checked = checked
        self.accelerator = accelerator
        self.features = features
        process = "" if accelerator.is_main_process else f"-{accelerator.process_index}"
        self.bad_path = folder / f"bad_samples{process}.jsonl"
        self.bad_training = self._bad_samples(checked.train, checked.left_out["train"])
        self.bad_validation = self._bad_samples(checked.validation, checked.left_out["validation"])

    def state_dict(self) -> dict[str, Any]:
        """The bad samples so far, and how long their file is."""
        listed = self.bad_path.stat().st_size if self.bad_path.exists() else 0
        bad = {"training": self.bad_training.state_dict(), "validation": self.bad_validation.state_dict()}
        return {"listed": listed, **bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget the bad samples that a killed run found after its last checkpoint; it will find them again."""
        self.bad_training.load_state_dict(state["training"])
        self.bad_validation.load_state_dict(state["validation"])
        if state["listed"]:
            os.truncate(self.bad_path, state["listed"])
        else:
            self.bad_path.unlink(missing_ok=True)

    def training_batches(self) -> TrainingBatches:
        """Endless batches in the order that was planned."""
        return TrainingBatches(
            self._dataset(self.checked.train, training=True),
            self.recipe.training.batch_size,
            order=self.checked.order,
            bad_samples=self.bad_training,
            accumulation=self.recipe.training.accumulation,
            workers=self.recipe.data.workers,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Evaluate over the validation records of all processes; see the functions for what it returns."""
        if isinstance(model, QFormerPretraining):
            return validate_qformer(model, self.validation_batches(), self.accelerator)
        return self.validation_loss(model)

    def validation_batches(self) -> Iterator[Any]:
        """This process's share of the validation records, in order."""
        return evaluation_batches(
            self._dataset(self.checked.validation, training=False),
            self.recipe.training.batch_size,
            bad_samples=self.bad_validation,
            workers=self.recipe.data.workers,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def validation_loss(self, model: nn.Module) -> dict[str, float]:
        """Mean loss per target over the validation records of all processes.

        Returns ``validation_loss``, the sum of the losses' means; if there are several, each as well, under
        ``validation_loss/NAME``.
        """
        sums, counts, all_sums, all_counts = (Counter[str]() for _ in range(4))
        for batch, counts_once in in_lockstep(self.accelerator, self.validation_batches()):
            with self.accelerator.autocast():
                losses = model(batch.to(self.accelerator.device))
            if counts_once:  # a sharded model repeats batches
                sums.update({name: float(loss.sum) for name, loss in losses.items()})
                counts.update({name: loss.count for name, loss in losses.items()})
        for others in gather_object([(sums, counts)]):  # a process without a record does not know the losses' names
            all_sums.update(others[0])
            all_counts.update(others[1])
        means = {f"validation_loss/{name}": all_sums[name] / max(1, all_counts[name]) for name in sorted(all_sums)}
        return {"validation_loss": sum(means.values()), **(means if len(means) > 1 else {})}

    def _dataset(self, records: Sequence[Record], training: bool) -> RecordDataset:
        return RecordDataset(
            records,
            self.checked.processor,
            training=training,
            replace_bad=training,
            padding_side=self.recipe.data.padding_side,
            no_target=self.recipe.data.no_target,
            features=self.features,
            pack=self._packing() if training else None,
        )

    def _packing(self) -> Callable[[Sequence[Row]], list[Row]] | None:
        """Joins the records of a row, if rows are packed."""
        room = row_room(self.recipe)
        if room is None:
            return None
        return partial(pack_rows, room=room, encoder_decoder=self.checked.processor.encoder_decoder)

    def _bad_samples(self, usable: Sequence[Record], left_out: Sequence[BadSample]) -> BadSamples:
        """A list that begins with what the checks left out."""
        bad = BadSamples(len(usable) + len(left_out), self.recipe.data.bad_limit, self.bad_path)
        bad.add(left_out)
        return bad
