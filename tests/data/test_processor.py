"""The processor: rows do not depend on their neighbours, and a batch says what its documentation says."""

import io
import json

import pytest
import torch

from sightbridge.batch import IGNORE_INDEX
from sightbridge.config.model import ImageSettings
from sightbridge.data.processor import prompt_record
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError, DataError, ImageError, SettingsError
from sightbridge.text.encode import NoTargetError
from sightbridge.text.turns import Turn
from small_models import SLOTS, TOKENIZERS, make_processor, picture, record, small_model

RECORDS = [
    record("one", "<image>\nWhat is it?", "A bus.", images=1),
    record("text", "Is the man happy, and what is he doing now?", "Yes"),
    record("two", "<image> or <image>?", "The first.", "Why?", "It is red and large.", images=2),
]


@pytest.fixture(scope="module")
def model():
    return small_model("llama")


@pytest.fixture(scope="module")
def t5_model():
    return small_model("t5")


def test_batch_is_what_its_documentation_says():
    processor = make_processor()
    batch = processor(RECORDS)
    lengths = batch.attention_mask.sum(dim=1)
    assert batch.ids == ("one", "text", "two")
    assert batch.images_per_row.tolist() == [1, 0, 2]
    assert batch.pixel_values is not None and batch.pixel_values.shape == (3, 3, 28, 28)
    assert batch.image_slots.dtype == torch.bool and batch.image_slots.sum(dim=1).tolist() == [SLOTS, 0, 2 * SLOTS]
    assert batch.labels is not None and batch.labels.shape == batch.input_ids.shape
    assert batch.input_ids.shape[1] == lengths.max()
    assert batch.n_target_tokens == int((batch.labels != IGNORE_INDEX).sum())
    assert (batch.input_ids[batch.attention_mask == 0] == processor.tokenizer.pad_token_id).all()
    assert (batch.input_ids[batch.image_slots] == processor.tokenizer.pad_token_id).all()
    assert (batch.attention_mask[batch.image_slots] == 1).all()
    targets = batch.labels[2][batch.labels[2] != IGNORE_INDEX]
    assert processor.tokenizer.decode(targets) == "The first.</s> It is red and large.</s>"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_asked_for(side):
    batch = make_processor()(RECORDS, side)
    assert batch.labels is not None
    for mask, slots, labels in zip(batch.attention_mask, batch.image_slots, batch.labels, strict=True):
        length = int(mask.sum())
        real = slice(-length, None) if side == "left" else slice(0, length)
        assert mask[real].all()
        padding = torch.ones_like(mask, dtype=torch.bool)
        padding[real] = False
        assert not slots[padding].any() and (labels[padding] == IGNORE_INDEX).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_does_not_depend_on_its_neighbours(model, side):
    processor = make_processor()
    together = processor(RECORDS, side)
    alone = [processor([one]) for one in RECORDS]
    assert together.n_target_tokens == sum(batch.n_target_tokens for batch in alone)
    with torch.no_grad():
        logits = model.logits(together)
        for row, batch in enumerate(alone):
            real = together.attention_mask[row].bool()
            torch.testing.assert_close(logits[row][real], model.logits(batch)[0], atol=1e-5, rtol=1e-5)
        sums = [model(batch)["lm"] for batch in [together, *alone]]
    torch.testing.assert_close(sums[0].sum, sum(loss.sum for loss in sums[1:]), atol=1e-3, rtol=1e-5)
    assert sums[0].count == together.n_target_tokens


def test_encoder_decoder_rows_do_not_depend_on_their_neighbours(t5_model):
    processor = make_processor("t5_v1", "t5", encoder_decoder=True)
    for side in ("left", "right"):
        together = processor(RECORDS, side)
        alone = [processor([one]) for one in RECORDS]
        assert together.labels is not None and together.labels.shape[1] < together.input_ids.shape[1]
        assert (together.labels[:, 0] != IGNORE_INDEX).all(), "the decoder's side is always padded right"
        with torch.no_grad():
            sums = [t5_model(batch)["lm"] for batch in [together, *alone]]
        torch.testing.assert_close(sums[0].sum, sum(loss.sum for loss in sums[1:]), atol=1e-3, rtol=1e-5)
        assert sums[0].count == together.n_target_tokens == sum(batch.n_target_tokens for batch in alone)


def test_a_target_at_the_first_position_is_never_counted():
    """The llama3 tokenizer adds no BOS, so a caption without a picture starts with a target."""
    processor = make_processor("plain", "llama3")
    caption = record("caption", "", "a yellow dog chases the bus")
    for side in ("left", "right"):
        batch = processor([caption, *RECORDS[:1]], side)
        assert batch.labels is not None
        first = int((batch.attention_mask[0] == 0).sum()) if side == "left" else 0
        assert batch.labels[0, first] == IGNORE_INDEX and batch.labels[0, first + 1] != IGNORE_INDEX
        assert batch.n_target_tokens == int((batch.labels != IGNORE_INDEX).sum())


def test_generation_opens_the_last_answer():
    processor = make_processor()
    batch = processor(RECORDS, for_generation=True)
    assert batch.labels is None and batch.n_target_tokens == 0
    assert batch.attention_mask[:, -1].all(), "decoder-only prompts are padded on the left"
    text = processor.tokenizer.decode(batch.input_ids[2][~batch.image_slots[2]])
    assert "The first.</s>" in text and text.endswith("ASSISTANT:") and "large" not in text
    encoder = make_processor("t5_v1", "t5", encoder_decoder=True)(RECORDS, for_generation=True)
    assert encoder.labels is None and encoder.attention_mask[:, 0].all()


def test_prompt_adds_markers_only_where_there_are_none():
    processor = make_processor()
    plain = processor.prompt([picture(0), picture(1)], "Which one?")
    written = processor([record("r", "<image>\n<image>\nWhich one?", None, images=2)], for_generation=True)
    assert torch.equal(plain.input_ids, written.input_ids) and torch.equal(plain.image_slots, written.image_slots)
    assert plain.pixel_values is not None and torch.equal(plain.pixel_values, written.pixel_values)
    assert prompt_record(picture(0), "What about <image>?").turns[0].text == "What about <image>?"
    assert prompt_record(picture(0)).turns[0].text == "<image>"
    assert prompt_record([], "Hello\n").turns[0].text == "Hello\n"
    with pytest.raises(DataError, match="marker"):
        processor.prompt([picture(0), picture(1)], "Only <image>?")


def test_decode_ends_at_eos_and_at_stop_texts():
    processor = make_processor()
    ids = processor.tokenizer(["A red bus.</s>junk", "Yes"], add_special_tokens=False)["input_ids"]
    assert processor.decode(ids) == ["A red bus.", "Yes"]
    assert processor.eos_ids == (2,) and processor.stop_strings == ()
    spoken = make_processor("llava_v0")
    assert spoken.stop_strings == ("###",)
    ids = spoken.tokenizer(["A bus. ###Human: more"], add_special_tokens=False)["input_ids"]
    assert spoken.decode(torch.tensor(ids)) == ["A bus."]
    llama3 = make_processor("llava_llama_3", "llama3")
    end = llama3.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert end in llama3.eos_ids and llama3.tokenizer.eos_token_id in llama3.eos_ids


def test_training_draws_by_seed_epoch_and_record():
    image = ImageSettings(size=28, augment="crop_flip", crop_scale=(0.3, 0.9))

    def pixels(processor, **options):
        return processor(RECORDS[:1], **options).pixel_values

    processor = make_processor(image=image)
    first = pixels(processor, training=True)
    assert torch.equal(first, pixels(make_processor(image=image), training=True))
    assert not torch.equal(first, pixels(processor, training=True, epoch=1))
    assert not torch.equal(first, pixels(make_processor(image=image, seed=1), training=True))
    assert torch.equal(pixels(processor), pixels(processor, epoch=1))


def test_split_answer_is_cut_anew_every_epoch():
    processor = make_processor("t5_plain_split_text", "t5", encoder_decoder=True)
    caption = record("c", "<image>", "a yellow dog chases the large red bus near a tree", images=1)
    cuts = {processor([caption], training=True, epoch=epoch).n_target_tokens for epoch in range(8)}
    assert len(cuts) > 2
    assert len({processor([caption]).n_target_tokens for _ in range(3)}) == 1


def test_errors_say_which_record():
    processor = make_processor()
    broken = Record("b", ("nowhere.png",), (Turn("user", "<image>"), Turn("assistant", "A")), where="rows.json, row 7")
    with pytest.raises(ImageError, match=r"rows\.json, row 7, picture 1: nowhere\.png: no such picture"):
        processor([broken])
    with pytest.raises(DataError, match=r"rows\.json, row 3: record 'm': .*1 picture\(s\).*2 '<image>' marker"):
        processor([record("m", "<image><image>", "A", images=1, where="rows.json, row 3")])
    with pytest.raises(NoTargetError, match=r"rows\.json, row 4"):
        processor([record("n", "Hi", where="rows.json, row 4")])
    with pytest.raises(NoTargetError, match=r"waits for an answer.*for_generation=True"):
        processor([record("o", "Hi", None)])


def test_pictures_dropped_by_the_length_are_dropped_with_their_pixels():
    short = make_processor("plain", max_length=8, switches={"drop_cut_images": True})
    batch = short([record("two", "<image>", "A", "<image>", "B", images=2)])
    assert batch.images_per_row.tolist() == [1] and batch.image_slots.sum() == SLOTS
    assert batch.pixel_values is not None and len(batch.pixel_values) == 1


def test_wrong_kind_of_template():
    with pytest.raises(SettingsError, match="'t5_v1' is for encoder-decoder language models, but this one is decoder"):
        make_processor("t5_v1")
    with pytest.raises(SettingsError, match="unknown prompt template 'vicunna_v1'"):
        make_processor("vicunna_v1")
    with pytest.raises(SettingsError, match="unknown switch"):
        make_processor(switches={"learn_all": True})


def test_tokenizers_open_and_pad_without_growing(tmp_path):
    for name in ("llama", "llama3", "t5"):
        tokenizer = load_tokenizer(TOKENIZERS / name)
        assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id < tokenizer.vocab_size
    assert load_tokenizer(TOKENIZERS / "llama").pad_token == "<unk>"
    assert load_tokenizer(TOKENIZERS / "llama3").pad_token == load_tokenizer(TOKENIZERS / "llama3").eos_token
    text = "a dog</s>USER"
    legacy, modern = (load_tokenizer(TOKENIZERS / "llama", legacy=flag)(text).input_ids for flag in (True, False))
    assert legacy != modern
    with pytest.raises(CheckpointError, match="cannot open a tokenizer in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(CheckpointError, match=r"cannot open a tokenizer in .* as language_model\.tokenizer\.$"):
        load_tokenizer(tmp_path)


def test_code_in_a_tokenizers_folder_is_never_run(tmp_path, monkeypatch):
    code = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 5))
    with pytest.raises(CheckpointError, match=r"cannot open a tokenizer in .* contains custom code"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
