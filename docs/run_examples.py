"""Runs the commands of a document again and writes down what they print: ``python docs/run_examples.py [FILE]``.

A block of ``console`` holds commands, after ``$ ``, and their output. All of a document's commands run one after the
other in one empty folder. Outputs are thus never typed by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def run_block(block: re.Match[str], folder: str) -> str:
    """The block with its commands' outputs of today."""
    lines = []
    for command in re.findall(r"^\$ (.*)$", block[1], re.MULTILINE):
        print(f"$ {command}", flush=True)
        result = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=os.environ | {"COLUMNS": "100", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        lines += [f"$ {command}", *(line.rstrip() for line in result.stdout.strip("\n").splitlines())]
    return "```console\n" + "\n".join(lines) + "\n```"


def main() -> None:
    """Rewrite the document in place."""
    document = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "commands.md"
    with tempfile.TemporaryDirectory() as folder:
        text = document.read_text(encoding="utf-8")
        text = re.sub(r"```console\n(.*?)```", lambda block: run_block(block, folder), text, flags=re.DOTALL)
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
