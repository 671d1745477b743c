"""datasets.md: a section for each release whose commands our parser takes, and for each data set of the papers."""

import json
import re
import shlex
from pathlib import Path

import pytest

from umamba_seg.cli import build_parser
from umamba_seg.datasets.releases import RELEASES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "datasets.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def commands(section):
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("umamba-seg ")]


@pytest.mark.parametrize("key", sorted(SECTIONS))
def test_commands_are_taken_by_our_parser(key):
    for words in commands(SECTIONS[key]):
        build_parser().parse_args(words)


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_every_release_has_a_section_with_its_command(release):
    section = SECTIONS[release.name]
    assert ["convert", release.name] in [words[:2] for words in commands(section)]
    assert f"check -d {release.dataset_id}\n" in section
    assert ("not compared" in section) != release.verified
    for option in release.options:
        assert f"--{option.name}" in section


def test_options_that_make_another_data_set_are_named_in_the_overview():
    rows = {row[0]: row[1] for row in re.findall(r"^\| \[(\w+)\]\(#\1\) \|(.*)\|$", TEXT, re.MULTILINE)}
    assert {key for key in SECTIONS if key != "Labels"} == set(rows)
    for release in RELEASES.values():
        assert re.search(rf"\b{release.dataset_id}\b", rows[release.name].split("|")[3]), release.name
        assert f"`{release.name}`" in rows[release.name]


def test_every_data_set_of_the_papers_is_covered():
    """Each by the name under which the facts are kept, in its own section."""
    tables = ROOT.parent / "shared" / "tables.json"
    if not tables.exists():
        pytest.skip(f"no {tables}")
    text = " ".join("".join(SECTIONS.values()).split())
    missing = [entry["name"] for entry in json.loads(tables.read_text())["datasets"] if entry["name"] not in text]
    assert not missing


@pytest.mark.parametrize("key", sorted(set(SECTIONS) - {"Labels"}))
def test_a_section_reads_well_alone_in_a_terminal(key):
    section = SECTIONS[key]
    assert "](" not in section, "a link to another section says nothing in a terminal"
    assert max(map(len, section.splitlines())) <= 120
    for word in ("Origin", "Licence", "Size", "Used by"):
        assert re.search(rf"{word}\b|{word.lower()}\b", section), word
