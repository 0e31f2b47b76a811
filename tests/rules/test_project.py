"""The README's commands, the packages, the recipes and the links of the documents."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sightbridge.config.load import read_recipe, recipe_names

ROOT = Path(__file__).parents[2]


def block(name: str) -> str:
    """The fenced block after the marker ``<!-- name -->`` in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"<!-- {name} -->\s*\n```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert match, f"README.md has no fenced block after '<!-- {name} -->'"
    return match[1]


def project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_readme_has_the_two_commands() -> None:
    assert block("tests").splitlines() == ['pip install -c constraints.txt -e ".[test]"', "python -m pytest -n 2"]
    assert block("quickstart").splitlines() == ["pip install -c constraints.txt -e .", "sightbridge quickstart"]


@pytest.mark.skipif(not (shutil.which("awk") and shutil.which("bash")), reason="needs bash and awk")
def test_ci_finds_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    function = script[script.index("block() {") : script.index("}\n", script.index("exit; inside=1")) + 2]
    result = subprocess.run(["bash", "-c", f"{function}\nblock tests"], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == block("tests")
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0


def test_test_files_have_names_of_their_own() -> None:
    """They are no packages, so pytest imports two of one name as one, depending on which came first."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == ["conftest.py"]


def direct_requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for line in (*project()["dependencies"], *(line for extra in extras for line in extra))]


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_packages_are_ranges_with_a_tested_version(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators, f"'{requirement}' in pyproject.toml has no lower bound"
    assert not operators & {"==", "===", "~="}, (
        f"'{requirement}' in pyproject.toml is pinned; pins are in constraints.txt"
    )
    pin = constraints().get(canonicalize_name(requirement.name))
    assert pin, f"constraints.txt has no version of {requirement.name}"
    (version,) = pin.specifier
    assert version.operator == "=="
    assert requirement.specifier.contains(version.version), f"{pin} is outside '{requirement}'"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_what_it_is(name: str) -> None:
    recipe = read_recipe(name).recipe
    assert recipe.description
    assert recipe.hardware


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<(?:img|a)[^>]*(?:src|href)=\"([^\"]+)\"", text)
    for target in filter(None, (first or second for first, second in targets)):
        if re.match(r"[a-z]+:|#", target):
            continue
        file = path.parent / target.partition("#")[0]
        assert file.exists(), f"{path}: the link to {target} leads nowhere"
