"""Pictures from everywhere, the names of t2v_metrics, and what users get wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_workplace import Workplace, run_command
from PIL import Image
from score_models import TEXTS, backend_of, lively_model, processor_of, save_clip, write_pictures

import sightbridge.scoring as t2v_metrics
from sightbridge.errors import CheckpointError, DataError, ImageError, SettingsError
from sightbridge.scoring import load_scorer, make_backend
from sightbridge.scoring.pairs_file import read_pairs
from sightbridge.scoring.pictures import Pictures, find_pictures
from sightbridge.scoring.scorer import Scorer


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("scored"))
    assert run_command("train", "tiny/random", "--out", place.run, *place.overrides) == 0
    return place


def test_a_picture_scores_alike_however_it_is_given(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "pictures", 3)[2]
    pixels = np.asarray(Image.open(path))
    np.save(tmp_path / "bgr.npy", pixels[:, :, ::-1])
    ways = [path, str(path), path.read_bytes(), Image.open(path), pixels, tmp_path / "bgr.npy"]
    table = Scorer(backend_of("t5")).score(ways, TEXTS)
    assert len({tuple(row) for row in table.tolist()}) == 1
    folder = Scorer(backend_of("t5")).score(tmp_path / "pictures", TEXTS)
    assert folder.shape == (3, 5) and torch.allclose(folder[2], table[0], rtol=1e-5)
    assert Scorer(backend_of("t5"))(images=path, texts=TEXTS[0]).shape == (1, 1)


def test_frames_of_a_video_are_pictures(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for shade in range(0, 250, 25):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    scores = Scorer(backend_of("itc"), frames=3).score(path, TEXTS, trace=True)
    assert scores.values.shape == (3, 5) and len({tuple(row) for row in scores.values.tolist()}) == 3
    assert scores.images[1].endswith("frame 2 of 3")


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "text", "folder", "npy", "pillow", "url", "thin", "none"])
def test_a_broken_picture_is_named_before_anything_is_computed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_pictures(tmp_path / "good", 2)
    bad = tmp_path / "bad.png"
    source: object = bad
    encoded = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(encoded, "PNG")
    if kind == "empty":
        bad.write_bytes(b"")
    elif kind == "cut":
        bad.write_bytes(encoded.getvalue()[:2000])
    elif kind == "text":
        bad.write_text("<svg/>")
    elif kind == "folder":
        bad.mkdir()
    elif kind == "npy":
        source = tmp_path / "bad.npy"
        np.save(source, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    elif kind == "pillow":
        source = Image.open(io.BytesIO(encoded.getvalue()[:2000]))
    elif kind == "url":
        source = "http://example.org/bad.png"
    elif kind == "none":
        source = None
    elif kind == "thin":
        Image.new("RGB", (30_000, 1)).save(bad)
    backend = backend_of("llama")
    monkeypatch.setattr(type(backend), "encode", lambda *_: pytest.fail("computed something"))
    for store in (None, tmp_path / "scores.sqlite"):
        with pytest.raises(ImageError, match=r"PNG|bad|picture"):
            Scorer(backend, store=store).score([*good, source], TEXTS)


def test_skipped_pictures_are_listed_and_others_scored(tmp_path: Path) -> None:
    good, bad = write_pictures(tmp_path / "good", 2), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    for store in (None, tmp_path / "scores.sqlite"):
        scorer = Scorer(backend_of("llama"), on_error="skip", store=store)
        scores = scorer.score([good[0], bad, good[1]], TEXTS, trace=True)
        assert scores.values[1].isnan().all() and not scores.values[[0, 2]].isnan().any()
        assert list(scores.skipped) == [str(bad)] and "not a picture" in scores.skipped[str(bad)]


def test_pixels_beyond_the_kept_ones_are_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_pictures(write_pictures(tmp_path))
    backend = backend_of("t5")
    expected = torch.cat(list(Pictures(found, backend.transform).batches(range(4), 3)))
    monkeypatch.setattr("sightbridge.scoring.pictures.KEPT_BYTES", expected[0].nbytes * 2)
    pictures = Pictures(found, backend.transform)
    assert pictures.check(range(4)) == {} and len(pictures.kept) == 2
    assert torch.equal(torch.cat(list(pictures.batches(range(4), 3))), expected) and not pictures.kept


def test_texts_are_taken_as_text(tmp_path: Path) -> None:
    pictures, scorer = write_pictures(tmp_path, 1), Scorer(backend_of("llama"))
    odd = ["<image>", "a </s> dog", 'a "quoted" {} dog {0}', "é" * 30, "\N{DOG FACE} 犬"]
    values = scorer.score(pictures, odd)
    assert values.isfinite().all() and len(values.unique()) == 5
    for texts, message in (([""], "is empty"), (["a", "  "], "text 2 of 2"), ([None], "None"), (["\ud83d"], "half a")):
        with pytest.raises(DataError, match=message):
            scorer.score(pictures, texts)  # type: ignore[list-item]
    assert scorer.score(pictures, []).shape == (1, 0) and scorer.score([], TEXTS).shape == (0, 5)


def test_a_row_that_is_too_long_is_not_cut(tmp_path: Path) -> None:
    processor = processor_of("llama")
    processor.prompt_settings = processor.prompt_settings.model_copy(update={"max_length": 60})
    scorer = Scorer(make_backend(lively_model("llama"), processor))
    with pytest.raises(DataError, match="more than the 60"):
        scorer.score(write_pictures(tmp_path, 1), TEXTS)


def test_wrong_settings_are_told_with_the_known_ones(tmp_path: Path) -> None:
    pictures, scorer = write_pictures(tmp_path, 1), Scorer(backend_of("t5"))
    for settings, message in (
        ({"question_templat": "x {}"}, "Did you mean 'question_template'"),
        ({"reduction": "geomea"}, "Did you mean 'geomean'"),
        ({"question_template": "Is it?", "answer_template": "yes"}, "the same score"),
        ({"head_rows": 0}, "head_rows"),
    ):
        with pytest.raises(SettingsError, match=message):
            scorer.score(pictures, TEXTS, **settings)
    with pytest.raises(SettingsError, match="asks nothing"):
        Scorer(backend_of("itm")).score(pictures, TEXTS, question_template="{}?")
    with pytest.raises(SettingsError, match="itm and itc"):
        make_backend(*(backend_of("itm").model, backend_of("itm").processor), "vqascore")  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match="Did you mean 'vqascore'"):
        make_backend(lively_model("t5"), processor_of("t5"), "vqascor")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no pairs"):
        scorer.pairs(pictures, TEXTS)
    with pytest.raises(DataError, match="1 and 1, 1 and 2"):
        scorer.batch_forward([{"images": pictures, "texts": TEXTS[:n]} for n in (1, 2)])
    with pytest.raises(SettingsError, match="differentiable=True"):
        scorer.score(torch.rand(1, 3, 28, 28), TEXTS)


def test_a_broken_weight_is_no_score(tmp_path: Path) -> None:
    backend = backend_of("gpt2")
    weight = next(backend.model.connector.parameters())  # type: ignore[attr-defined]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
        try:
            with pytest.raises(DataError, match="not a number"):
                Scorer(backend).score(write_pictures(tmp_path, 1), TEXTS)
        finally:
            weight.copy_(kept)


def test_code_for_t2v_metrics_runs_after_its_import_is_changed(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples of its read-me, on a model of ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf_cache").mkdir()
    (tmp_path / "hf_cache" / "clip-flant5-tiny").symlink_to(workplace.model, target_is_directory=True)
    save_clip(tmp_path / "hf_cache" / "openai:tiny")
    images = [str(path) for path in write_pictures(tmp_path / "images", 2)]
    assert t2v_metrics.list_all_models() == ["clip-flant5-tiny", "openai:tiny"]
    assert t2v_metrics.list_all_vqascore_models() == ["clip-flant5-tiny"]
    assert t2v_metrics.list_all_clipscore_models() == ["openai:tiny"]

    clip_flant5_score = t2v_metrics.VQAScore(model="clip-flant5-tiny")
    score = clip_flant5_score(images=[images[0]], texts=[TEXTS[0]])
    scores = clip_flant5_score(images=images, texts=TEXTS[:2])
    assert scores.shape == (2, 2) and scores.dtype == torch.float32
    assert score[0, 0].item() == pytest.approx(scores[0, 0].item(), rel=1e-5)
    dataset = [{"images": images, "texts": TEXTS[:2]}, {"images": images, "texts": TEXTS[2:4]}]
    assert clip_flant5_score.batch_forward(dataset=dataset, batch_size=16).shape == (2, 2, 2)
    asked = clip_flant5_score(
        images=images, texts=TEXTS[:2], question_template="Is the figure showing '{}'?", answer_template="Yes"
    )
    assert not torch.equal(asked, scores)
    assert len(clip_flant5_score.model.generate(images=images, texts=["Describe"] * 2, max_new_tokens=3)) == 2
    assert t2v_metrics.CLIPScore(model="openai:tiny")(images=images, texts=TEXTS).shape == (2, 5)
    assert type(t2v_metrics.get_score_model("openai:tiny")) is t2v_metrics.CLIPScore
    assert type(t2v_metrics.get_score_model("clip-flant5-tiny")) is t2v_metrics.VQAScore
    with pytest.raises(
        CheckpointError,
        match=r"Did you mean 'clip-flant5-tiny'\?.*zhiqiulin/clip-flant5-xl, then: sightbridge convert.*Known",
    ):
        t2v_metrics.VQAScore(model="clip-flant5-xl")
    t2v_metrics.register_model("mine", workplace.model)
    assert "mine" in t2v_metrics.list_all_models()
    assert torch.equal(t2v_metrics.VQAScore("mine")(images, TEXTS[:2]), scores)


def test_half_precision_and_its_name_are_recorded(workplace: Workplace, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    full, half = (load_scorer(workplace.model, dtype=dtype) for dtype in (None, "bfloat16"))
    assert half.record()["dtype"] == "bfloat16" and full.record()["dtype"] == "float32"
    torch.testing.assert_close(half.score(pictures, TEXTS), full.score(pictures, TEXTS), rtol=0.1, atol=1e-4)
    with pytest.raises(SettingsError, match="Did you mean 'bfloat16'"):
        load_scorer(workplace.model, dtype="bfloat")


@pytest.mark.parametrize("quantize", ["8bit", "nf4"])
def test_a_quantised_language_model_scores(workplace: Workplace, tmp_path: Path, quantize: str) -> None:
    pytest.importorskip("bitsandbytes")
    pictures, store = write_pictures(tmp_path), tmp_path / "scores.sqlite"
    full = load_scorer(workplace.model, store=store).score(pictures, TEXTS)
    rounded = load_scorer(workplace.model, quantize=quantize, store=store).score(pictures, TEXTS)  # type: ignore[arg-type]
    assert not torch.equal(full, rounded), "kept scores of the full model are not those of the rounded one"
    torch.testing.assert_close(rounded, full, rtol=0.3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,caption\nx.png,a\n", "names no column 'text'"),
        ("a.csv", "image,text\nx.png,a\ny.png,\n", "line 3: has no 'text'"),
        ("a.csv", 'image,text\nx.png,"a\n', "cannot be read"),
        ("a.jsonl", '{"image": "x.png", "text": "a"}\n{"image": 3}\n', "line 2: has no 'image'"),
        ("a.jsonl", "[" * 100_000, "line 1"),
        ("a.jsonl", "\n\n", "holds no pairs"),
        ("a.txt", "x", r"\.csv"),
        ("a.csv", b"image,text\n\xff\xfe,a\n", "cannot be read"),
        ("a.csv", "image,text\nx.png,a dog, sitting\n", "line 2: has more fields"),
    ],
)
def test_broken_pair_files_are_told_with_their_line(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / name)
