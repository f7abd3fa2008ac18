from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from samfed_monai.reports.sections import Section, read_sections, runs_in, unique_slugs

from .runs import write_run


@pytest.fixture
def folder(tmp_path):
    for variant, seed in (("samfed", 0), ("samfed", 1), ("dp_only", 0)):
        write_run(tmp_path / "R" / variant / f"seed-{seed}", variant, seed, 0.8)
    write_json(tmp_path / "R" / "comparison.json", {"command": "samfed compare B --seeds 0,1"})
    return tmp_path / "R"


def test_a_section_is_a_folder_of_runs_with_the_command_that_made_them(folder):
    assert [str(run.relative_to(folder)) for run in runs_in(folder)] == [
        *("dp_only/seed-0", "samfed/seed-0", "samfed/seed-1")
    ]
    (section,) = read_sections([f"From scratch = {folder}"])
    assert (section.title, section.command) == ("From scratch", "samfed compare B --seeds 0,1")
    assert section.table.row("samfed").seeds == [0, 1]
    (section,) = read_sections([f"A={folder}"], ["A=make a B=1"])
    assert section.command == "make a B=1"


def test_everything_that_is_wrong_is_told_at_once(folder):
    with pytest.raises(Refused) as refused:
        read_sections(["A", f"B={folder}", f"B={folder}", f"C={folder / 'none'}"], ["D=x"])
    text = str(refused.value)
    for part in (
        "refused: 4 problems",
        "--section: expected TITLE=DIR, found 'A'",
        "--section: expected each title once, found 'B' twice",
        "--section-command: expected a section's title: B, C, found 'D'",
        "none: expected a folder of runs, found no finished run; name the --output-dir of `samfed compare`",
    ):
        assert part in text


def test_figures_of_sections_have_names_of_their_own(folder):
    table = read_sections([f"A={folder}"])[0].table
    titles = ("ImageNet encoder", "imagenet, encoder!", "")
    assert unique_slugs([Section(title, table) for title in titles]) == ["imagenet-encoder", "imagenet-encoder-2", ""]
