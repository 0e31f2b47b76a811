"""A judge behind a chat server: what it is asked, what is made of its words, and what happens when it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sightbridge.errors import DataError, SettingsError
from sightbridge.evaluation.judge import Judge, grades_file, judge_part, read_grade, read_grades
from sightbridge.evaluation.metrics import contains_truth
from sightbridge.evaluation.predictions import file_of
from sightbridge.evaluation.task import Part, load_task


class Server:
    """Answers chat requests with ``words``, one after the other, and keeps what it was asked."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        self.refusals: list[int] = []
        """Statuses of the first responses, each of which asks to come again after so many seconds as there are left."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
                if outer.refusals:
                    self.send_response(outer.refusals.pop(0))
                    self.send_header("Retry-After", str(len(outer.refusals)))
                    self.end_headers()
                    return
                said = {"choices": [{"message": {"content": outer.words.pop(0) if outer.words else "0.5"}}]}
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()


@pytest.fixture
def part() -> Part:
    return next(part for part in load_task("vip_bench").parts() if part.name == "bbox")


def write_answers(part: Part, out: Path, count: int = 3) -> None:
    path = file_of(part, out)
    path.parent.mkdir(parents=True)
    for number in range(count):
        line = {"id": f"v1_{number}", "answer": f"answer {number}", "truths": ["a<AND>b"], "prompt": "p", "meta": {}}
        with path.open("a") as file:
            file.write(json.dumps(line | {"meta": {"question": f"question {number}"}}) + "\n")


@pytest.mark.parametrize(
    ("said", "grade"),
    [("0.7", 0.7), (" 1.0 because", 1.0), ("1", 1), (".5", 0.5), ("0,", 0), ("", None), ("yes", None), ("2", None)],
)
def test_the_first_word_is_the_grade(said: str, grade: float | None) -> None:
    assert read_grade(said) == grade


def test_a_busy_judge_is_asked_again_when_it_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("sightbridge.evaluation.judge.time.sleep", waited.append)
    server.refusals, server.words = [429, 503, 429], ["0.4"]
    assert Judge(server.url, "m").grade("q", "a", "b") == (0.4, "0.4")
    assert waited == [2, 1, 0]
    server.refusals = [429] * 100
    with pytest.raises(SettingsError, match="429"):
        Judge(server.url, "m").grade("q", "a", "b")
    assert len(server.refusals) == 94 and max(waited) == 60


def test_a_judge_that_says_no_number_is_asked_again_warmer(server: Server) -> None:
    server.words = ["well", "hm", "0.3"]
    assert Judge(server.url, "m", "secret").grade("q", "a<OR>b", "c") == (0.3, "0.3")
    assert [asked["temperature"] for asked in server.asked] == [0, 0.5, 1.0]
    assert server.asked[0]["messages"][0]["content"].endswith("q | a <OR> b | c | ")
    assert server.asked[1]["messages"][0]["content"].endswith("(digit): ")
    assert server.asked[0]["path"] == "/v1/chat/completions" and server.asked[0]["key"] == "Bearer secret"
    server.words = ["never"] * 9
    assert Judge(server.url, "m").grade("q", "a", "c")[0] == 0


def test_grades_are_kept_and_not_asked_for_twice(server: Server, part: Part, tmp_path: Path) -> None:
    write_answers(part, tmp_path)
    server.words = ["0.1", "0.2", "0.3"]
    judge_part(part, tmp_path, Judge(server.url, "m"))
    assert [line.grade for line in read_grades(part, tmp_path)] == [0.1, 0.2, 0.3]
    path = grades_file(part, tmp_path)
    kept = path.read_text().splitlines(keepends=True)
    path.write_text(kept[0] + kept[1][:20])  # killed in the middle of a line
    server.asked.clear()
    judge_part(part, tmp_path, Judge(server.url, "m"), runs=2)
    assert len(server.asked) == 5 and len(list(read_grades(part, tmp_path))) == 6
    with pytest.raises(DataError, match="holds grades by m, not by other"):
        judge_part(part, tmp_path, Judge(server.url, "other"))


def test_a_judge_that_cannot_be_asked(server: Server, part: Part, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected the address"):
        Judge("file:///etc/passwd", "m")
    with pytest.raises(SettingsError, match="cannot be asked"):
        Judge("http://127.0.0.1:9/v1", "m").grade("q", "a", "c")
    server.status = 403
    with pytest.raises(SettingsError, match="refused with status 403"):
        Judge(server.url, "m").grade("q", "a", "c")
    with pytest.raises(DataError, match="no answers"):
        judge_part(part, tmp_path, Judge(server.url, "m"))


@pytest.mark.parametrize(
    ("said", "truth", "value"),
    [
        ("It is x = -1 or -5.", "-1 <AND> -5", 1),
        ("It is -1.", "-1 <AND> -5", 0),
        ("A Kitten!", "cat<OR>kitten", 1),
        ("a dog", "cat<OR>kitten", 0),
    ],
)
def test_the_rule_without_a_judge(said: str, truth: str, value: float) -> None:
    assert contains_truth(said, [truth]) == value


def test_grades_survive_line_separators_and_half_characters(server: Server, part: Part, tmp_path: Path) -> None:
    write_answers(part, tmp_path)
    server.words = ["0.1\u2028so it is", "0.2 \ud83d", "0.3"]
    judge_part(part, tmp_path, Judge(server.url, "m"))
    assert [grade.grade for grade in read_grades(part, tmp_path)] == [0.1, 0.2, 0.3]


def test_grades_of_another_instruction_are_not_mixed(server: Server, part: Part, tmp_path: Path) -> None:
    write_answers(part, tmp_path)
    judge_part(part, tmp_path, Judge(server.url, "m"))
    with pytest.raises(DataError, match=r"holds grades by m, not by m \(instruction "):
        judge_part(part, tmp_path, Judge(server.url, "m", instruction="Grade it."))


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(SettingsError, match="cannot be asked"):
        Judge("http://two words/v1", "m").grade("q", "a", "b")


def test_damaged_grades_are_told(part: Part, tmp_path: Path) -> None:
    write_answers(part, tmp_path)
    grades_file(part, tmp_path).write_text('{"id": "a", "run": 0, "judge": "m", "grade": "good"}\n')
    with pytest.raises(DataError, match="line 1: not a line of grades: grade"):
        list(read_grades(part, tmp_path))
