import random

import pytest

from sightbridge.evaluation.captions import bleu, bleu_counts, cider, rouge_l

WORDS = ["a", "the", "red", "blue", "dog", "cat", "sits", "runs", "on", "under", "table", "street", "small"]


def captions(seed: int, pictures: int = 30) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(4, 12)))

    references = [[text() for _ in range(rng.randint(1, 5))] for _ in range(pictures)]
    candidates = [rng.choice([text(), texts[0], texts[-1] + " on the table"]) for texts in references]
    return candidates, references


@pytest.mark.parametrize("seed", range(4))
def test_parity_with_the_coco_toolkit(seed: int):
    toolkit_bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    toolkit_cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    toolkit_rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    candidates, references = captions(seed)
    given = dict(enumerate([[text] for text in candidates]))
    truth = dict(enumerate(references))
    expected = [
        *toolkit_bleu.compute_score(truth, given, verbose=0)[0],
        toolkit_cider.compute_score(truth, given)[0],
        toolkit_rouge.compute_score(truth, given)[0],
    ]
    measured = [
        *(bleu(candidates, references, n) for n in range(1, 5)),
        cider(candidates, references),
        rouge_l(candidates, references),
    ]
    difference = max(abs(a - b) for a, b in zip(measured, expected, strict=True))
    print(f"parity BLEU-1..4, CIDEr-D, ROUGE-L with pycocoevalcap: {difference:.2e}")
    assert difference < 1e-8


def test_the_right_captions_score_highest():
    _, references = captions(0)
    right = [texts[0] for texts in references]
    assert bleu(right, references) == pytest.approx(1) and rouge_l(right, references) == pytest.approx(1)
    assert cider(right, [[text] for text in right]) == pytest.approx(10)
    assert cider(right[1:] + right[:1], references) < cider(right, references)


def test_nothing_in_common_and_nothing_said():
    assert bleu(["x y z w"], [["a b c d"]]) == rouge_l(["x y z w"], [["a b c d"]]) == 0
    assert cider(["x", ""], [["a b"], ["c d"]]) == bleu([""], [["a"]]) == rouge_l([""], [["a"]]) == 0


def test_equal_ngrams_of_different_pictures_are_counted_apart():
    candidates = ["a a b", "", "c"]
    references = [["a a a b", "a b"], ["a a b", "c c"], ["b c", "c", "a"]]
    counts = bleu_counts(candidates, references).tolist()
    assert counts[0] == [3, 2, 1, 0, 3, 2, 1, 0, 3, 2]  # of two references as close, the shorter
    assert counts[1] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert counts[2] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 1]


def test_the_longest_common_words_need_not_stand_together():
    assert rouge_l(["a b c d"], [["x a y c z d"]]) == pytest.approx(rouge_l(["a c d q"], [["a x c y d z"]]))
    assert rouge_l(["d c b a"], [["a b c d"]]) == pytest.approx(0.25)
    assert rouge_l(["a a a"], [["a a"]]) == pytest.approx(2.44 * (2 / 3) / (1 + 1.44 * 2 / 3))
