"""Runs the commands of a document again and writes down what they print: ``python docs/run_examples.py [FILE]``.

A block of ``console`` holds commands, after ``$ ``, and their output. All of a document's commands run one after the
other in one empty folder, into which a block of ``yaml`` that begins with ``# NAME.yaml`` is written as that file.
Outputs are thus never typed by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"```(?P<kind>console|yaml)\n(?P<content>.*?)```", re.DOTALL)
REPOSITORY = Path(__file__).resolve().parents[1]
"""Paths in it, and in the folder that examples run in, are shown without what is in front."""
SECONDS = 300
"""What takes longer is no example."""


def renew_block(block: re.Match[str], folder: str) -> str:
    """The block with its commands' outputs of today; a file's block as it is, once the file is written."""
    if block["kind"] == "yaml":
        name = re.match(r"# ([\w-]+\.yaml)\n", block["content"])
        if name:
            Path(folder, name[1]).write_text(block["content"], encoding="utf-8")
        return block[0]
    lines = []
    commands = Path(sys.executable).parent  # where sightbridge is installed, whichever environment runs this
    for command in re.findall(r"^\$ (.*)$", block["content"], re.MULTILINE):
        print(f"$ {command}", flush=True)
        result = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=os.environ | {"COLUMNS": "100", "HF_HUB_OFFLINE": "1", "PATH": f"{commands}:{os.environ['PATH']}"},
            timeout=SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        said = result.stdout.strip("\n").replace(f"{folder}/", "").replace(f"{REPOSITORY}/", "")
        lines += [f"$ {command}", *(line.rstrip() for line in said.splitlines())]
    return "```console\n" + "\n".join(lines) + "\n```"


def main() -> None:
    """Rewrite the document in place."""
    document = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "commands.md"
    with tempfile.TemporaryDirectory() as folder:
        text = document.read_text(encoding="utf-8")
        text = BLOCK.sub(lambda block: renew_block(block, folder), text)
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
