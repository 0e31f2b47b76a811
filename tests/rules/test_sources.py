"""Sizes, docstrings and paths of everything we ship."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sightbridge"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE = 400
MAX_FUNCTION = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.stmt, parent: ast.AST) -> Iterator[ast.AST]:
    """Public classes and functions of a module, and the public methods of its public classes."""
    if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
        # An override says what its base says, unless it has something to add.
        overrides = any(
            isinstance(mark, ast.Name) and mark.id in ("override", "overload") for mark in node.decorator_list
        )
        if not overrides and not (isinstance(parent, ast.ClassDef) and node.name in INHERITED):
            yield node
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                yield from public(child, node)


INHERITED = {"forward", "extra_repr", "list_commands"}
"""Methods whose meaning is that of the class they are defined in."""


def test_files_and_functions_are_short() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    long = [f"{path}: {lines} lines" for path, text in texts.items() if (lines := text.count("\n")) > MAX_FILE]
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, f"split: {long}"


def test_public_things_have_docstrings() -> None:
    bare = []
    for path in SOURCES:
        module = ast.parse(path.read_text(encoding="utf-8"))
        if (path.name != "__init__.py" or module.body) and not ast.get_docstring(module):
            bare.append(str(path))
        bare += [
            f"{path}:{node.lineno}: {node.name}"
            for statement in module.body
            for node in public(statement, module)
            if isinstance(node, Function | ast.ClassDef) and not ast.get_docstring(node)
        ]
    assert not bare, f"no docstring: {bare}"


def shipped_texts() -> list[Path]:
    """Every text file of the project that a user gets."""
    folders = [PACKAGE, ROOT / "docs", ROOT / ".ci"]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt")]
    return [path for path in files if b"\0" not in path.read_bytes()[:4096]]


def test_no_private_paths() -> None:
    private = re.compile(r"(?<![\w.~/])/(?:home|root|work|Users)/")
    texts = shipped_texts()
    assert ROOT / "README.md" in texts
    found = [str(path) for path in texts if private.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert not found
