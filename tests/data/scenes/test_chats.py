"""Scenes in MiniGPT4Qwen's format: the same conversations, and videos that move the way their answer says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightbridge.data.readers import load_records
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.images.load import load_image


def test_chats_are_the_conversations_and_videos_move(tmp_path: Path) -> None:
    counts = write_scenes(tmp_path / "scenes", ScenesSettings(train=45, test=4, size=48, languages=("en", "de")))
    for part in ("train", "test"):
        ours = load_records("minigpt4qwen", tmp_path / "scenes" / f"chats_{part}.json")
        theirs = load_records("llava", tmp_path / "scenes" / f"{part}.json")
        assert len(ours) == len(theirs) == counts[f"chats_{part}"]
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.id, mine.images, mine.language) == (other.id, other.images, other.language)
            said = [turn.text for turn in mine.turns]
            assert [text.replace("<Img><image></Img> ", "<image>\n") for text in said if text] == [
                turn.text for turn in other.turns
            ]
    videos = load_records("minigpt4qwen", tmp_path / "scenes" / "videos_train.json", frames=4)
    assert len(videos) == counts["videos_train"] == 3
    for video in videos:
        first, second = (np.asarray(load_image(frame)) for frame in video.images[:2])
        step = 4 if video.turns[1].text in ("right", "rechts") else -4
        assert np.array_equal(np.roll(first, step, axis=1), second)
