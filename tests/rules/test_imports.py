"""Rooms import downwards only, and light things stay light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "accelerate", "PIL", "numpy")


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_rooms_import_downwards_only() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_every_room_has_its_layer() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = " ".join(next(contract["layers"] for contract in contracts if contract["type"] == "layers"))
    placed = {word.strip("()").removeprefix("sightbridge.") for word in layers.replace("|", " ").split()}
    package = ROOT / "src" / "sightbridge"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms - {"__init__", "__main__"} <= placed


@pytest.mark.parametrize(
    "code",
    [
        "import sightbridge",
        "import sightbridge.config.load, sightbridge.cli.main",
        "import sightbridge.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit as end: assert end.code == 0",
        "import sightbridge.cli.main as m\ntry: m.main(['recipes'])\nexcept SystemExit as end: assert end.code == 0",
    ],
)
def test_light_things_load_nothing_heavy(code: str) -> None:
    check = f"import sys\nprint('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    assert python(f"{code}\n{check}").rstrip().endswith("LOADED []")


def test_python_dash_m_is_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sightbridge", "--help"], capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.returncode == 0
    assert "Usage: sightbridge " in result.stdout
