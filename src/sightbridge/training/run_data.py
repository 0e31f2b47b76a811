"""What one process of a run trains and is validated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from sightbridge.config.recipe import Recipe
from sightbridge.data.bad_samples import BadSample, BadSamples
from sightbridge.data.dataset import RecordDataset, TrainingBatches, evaluation_batches
from sightbridge.data.feature_store import FeatureStore
from sightbridge.data.packing import pack_rows
from sightbridge.data.processor import Row
from sightbridge.data.record import Record
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.training.order import row_room
from sightbridge.training.preflight import Checked, Watch


class RunData:
    """Batches for training and validation, this process's share of them, and the bad samples found on the way.

    Args:
        recipe: of the run.
        checked: its usable records.
        folder: of the run; bad samples are listed in it (by every process in a file of its own).
        accelerator: knows which process this is.
        features: the frozen tower's output, if it was kept.
    """

    def __init__(
        self, recipe: Recipe, checked: Checked, folder: Path, accelerator: Accelerator, features: FeatureStore | None
    ) -> None:
        self.recipe = recipe
        self.checked = checked
        self.accelerator = accelerator
        self.features = features
        process = "" if accelerator.is_main_process else f"-{accelerator.process_index}"
        self.bad_path = folder / f"bad_samples{process}.jsonl"
        self.bad_training = self._bad_samples(checked.train, checked.left_out["train"])
        self.bad_validation = self._bad_samples(checked.validation, checked.left_out["validation"])

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

    def validation_loss(self, model: nn.Module) -> dict[str, float]:
        """Mean loss per target over the validation records of all processes.

        Returns ``validation_loss``, the sum of the losses' means; if there are several, each as well, under
        ``validation_loss/NAME``.
        """
        batches = evaluation_batches(
            self._dataset(self.checked.validation, training=False),
            self.recipe.training.batch_size,
            bad_samples=self.bad_validation,
            workers=self.recipe.data.workers,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        sums, counts, all_sums, all_counts = (Counter[str]() for _ in range(4))
        for batch in batches:
            with self.accelerator.autocast():
                losses = model(batch.to(self.accelerator.device))
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


def keep_features(
    recipe: Recipe, checked: Checked, model: VisionLanguageModel, accelerator: Accelerator, watch: Watch
) -> FeatureStore:
    """Run the frozen tower once over all pictures, in the precision of the training."""
    model.vision_tower.to(accelerator.device)

    def encode(pixels: Tensor) -> Tensor:
        with accelerator.autocast():
            return model.encode_images(pixels.to(accelerator.device))

    records = [*checked.train, *checked.validation]
    return FeatureStore(watch(records, "looking at every picture once"), recipe.model.image, encode)
