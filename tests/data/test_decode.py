"""``data.decode``: bytes from the processor to the tower, close to the exact way, and in training only."""

import torch

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.processor import Processor
from small_models import SLOTS, TOKENIZERS, load_tokenizer, record, small_model

RECORDS = [
    record("a", "<image> What?", "A bus.", images=1),
    record("b", "Hi", "Hello"),
    record("c", "<image>", "B", images=1),
]


def processor(decode, **image):
    return Processor(
        load_tokenizer(TOKENIZERS / "llama"),
        PromptSettings(template="vicuna_v1"),
        ImageSettings(size=28, fit="pad", **image),
        tokens_per_image=SLOTS,
        encoder_decoder=False,
        decode=decode,
    )


def test_training_batches_hold_bytes_and_others_do_not():
    quick, exact = processor("fast"), processor("exact")
    assert quick(RECORDS, training=True).pixel_values.dtype == torch.uint8
    assert torch.equal(quick(RECORDS).pixel_values, exact(RECORDS).pixel_values)
    assert torch.equal(quick(RECORDS, for_generation=True).pixel_values, exact(RECORDS).pixel_values)
    moved = quick(RECORDS, training=True).to("cpu", torch.bfloat16)
    assert moved.pixel_values.dtype == torch.uint8  # a picture cast to bfloat16 would lose its last bits


def test_the_tower_normalises_bytes():
    """The same pixels, given as bytes and normalised beforehand, give the same features."""
    model = small_model()
    pixels = processor("fast")(RECORDS, training=True).pixel_values
    settings = ImageSettings()
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    expected = model.encode_images((pixels / 255 - mean) / std)
    assert torch.allclose(model.encode_images(pixels), expected, atol=1e-6)


def test_losses_of_both_ways_are_close_and_draws_are_the_same():
    model = small_model()
    for epoch in range(3):
        losses = []
        for decode in ("exact", "fast"):
            batch = processor(decode, augment="crop_flip")(RECORDS, training=True, epoch=epoch)
            losses.append(float(model(batch)["lm"].sum.detach()))
        assert abs(losses[0] - losses[1]) < 1e-3 * losses[0]
