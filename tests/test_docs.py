"""What docs/reproducing.md says is there, is there."""

import inspect
import re
import tomllib

import pytest

from sepo_env.tasks import options_from_json
from sepo_env.tasks.artefact_files import ARTEFACTS
from sepo_env.tasks.dna_enhancer import DNAEnhancerTask


@pytest.fixture(scope="module")
def page(project_root):
    return (project_root / "docs" / "reproducing.md").read_text()


def test_the_files_of_the_folder_are_those_that_are_looked_for(page):
    table = page.split("## The folder")[1].split("## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == [str(file) for file in ARTEFACTS.values()]


def test_paths_of_this_project_exist(page, project_root):
    named = set(re.findall(r"`((?:benchmarks|tests|sepo_env|agents)/[\w/.]+)`", page))
    named |= {command.split()[1] for command in re.findall(r"^python .*$", page, re.MULTILINE)}
    assert {"benchmarks/paper_dna.py", "benchmarks/published_dna.csv", "tests/fixtures"} <= named
    assert [name for name in sorted(named) if not (project_root / name).exists()] == []


def test_extras_that_are_named_exist(page, project_root):
    extras = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (sentence,) = re.findall(r"Extras that exclude each other: (.*?)\*\*", page)
    named = re.findall(r"`(\w+)`", sentence) + re.findall(r'pip install -e "\.\[(\w+)\]"', page)
    assert set(named) == {"grelu", "hf", "test", "dev"}
    assert set(named) <= set(extras)
    assert any(re.match(r"sepo-env\[.*\bhf\b.*\]", wanted) for wanted in extras["test"])
    assert "sepo-env[test]" in extras["dev"]


def test_no_page_installs_from_an_index_that_does_not_have_it(project_root):
    for path in [project_root / "README.md", *sorted((project_root / "docs").glob("*.md"))]:
        assert not re.search(r"pip install [^`\n]*sepo-env", path.read_text()), path


def test_the_command_that_trains_on_artefacts_names_options_that_there_are(page):
    (text,) = re.findall(r"agents\.train sepo --task-options '([^']*)'", page)
    assert set(options_from_json(text)) <= set(inspect.signature(DNAEnhancerTask).parameters)
