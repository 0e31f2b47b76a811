"""``sightbridge inspect data --lengths``: counts agree with what encoding at each length does."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command

from sightbridge.cli.inspect_lengths import cut_at, histogram, measure, quantile
from sightbridge.errors import DataError
from sightbridge.text.encode import NoTargetError
from small_models import make_processor, record

RECORDS = [
    record("a", "<image>\nWhat?", "A dog.", images=1),
    record("b", "What is it? " * 3 + "<image>", "A cat that sits on a mat.", images=1),
    record("c", "<image> and <image>", "Two dogs.", "And <image>?", "A cat. " * 5, images=3),
    record("d", "Hello.", "Hello. " * 10),
    record("e", "Nothing is said."),
]


@pytest.mark.parametrize("template", ["vicuna_v1", "plain", "t5_v1", "t5_plain"])
@pytest.mark.parametrize("answer_limit", [None, 6])
def test_counts_are_those_of_encoding(template: str, answer_limit: int | None) -> None:
    is_t5 = template.startswith("t5")
    options = {"tokenizer": "t5" if is_t5 else "llama", "encoder_decoder": is_t5}
    rows, unusable = measure(RECORDS, make_processor(template, max_length=7, **options))
    assert (len(rows) == 4 and "nothing to learn" in unusable[0]) or "no answer" in unusable[0]
    for limit in (*range(3, 60), 128):
        processor = make_processor(template, max_length=limit, max_answer_length=answer_limit, **options)
        cut = refused = no_target = 0
        for one in RECORDS[:4]:
            try:
                cut += processor.encode(one).truncated > 0
            except NoTargetError:
                cut, no_target = cut + 1, no_target + 1
            except DataError as error:
                assert "do not fit into" in str(error)
                cut, refused = cut + 1, refused + 1
        found = cut_at(rows, limit, answer_limit if is_t5 else None)
        assert (found.rows, found.pictures) == (cut, refused), limit
        assert found.no_target >= no_target
        if refused == 0:
            assert found.no_target == no_target


def test_quantiles_and_bars() -> None:
    values = list(range(1, 101))
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert quantile([7], 0.5) == 7
    bars = [line.plain for line in histogram([5, 5, 5, 30, 31])]
    assert bars[0].endswith(" 3") and "█" * 50 in bars[0]
    assert sum(int(bar.rsplit(" ", 1)[1]) for bar in bars) == 5
    assert [line.plain for line in histogram([4, 4])] == ["4 - 4  " + "█" * 50 + " 2"]


def test_of_a_model_folder_and_of_a_recipe(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    file = workplace.scenes / "train.json"
    command = ["inspect", "data", file, "--format", "llava", "--lengths"]
    assert run_command(*command, workplace.model) == 0
    out = capsys.readouterr().out
    assert "rows: tokens of prompt and target" in out
    assert "99%" in out and "rows cut" in out and "256  (the model's)" not in out
    assert run_command(*command, "tiny/encdec-mlp") == 0
    assert "tokens of the encoder's row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lengths", "tiny/decoder-mpl"], "Did you mean 'tiny/decoder-mlp'"),
        (["--lengths", "tiny/blip2-stage1"], "sightbridge train tiny/blip2-stage1"),
        (["--lengths", "{model}", "--template", "vicuna_v1"], "leave out --model, --template"),
        (["--lengths", "{scenes}"], "it is not a model folder"),
    ],
)
def test_wrong_models(words: list[str], message: str, workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.format(model=workplace.model, scenes=workplace.scenes) for word in words]
    assert run_command("inspect", "data", workplace.scenes / "train.json", "--format", "llava", *words) == 1
    assert message in capsys.readouterr().err


def test_no_usable_record(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "1", "conversations": [{"from": "human", "value": "Hello."}]}]
    file: Path = workplace.scenes / workplace.write_rows("silent.json", rows)
    assert run_command("inspect", "data", file, "--format", "llava", "--lengths", workplace.model) == 1
    assert "none of the 1 records can be used" in capsys.readouterr().err
