import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from study.__main__ import main
from study.page import Section, read_sections, unique_slugs
from study.record import runs_in
from tests.reports.runs import DICE, write_row


@pytest.fixture
def folder(tmp_path):
    for variant, seed in (("samfed", 0), ("samfed", 1), ("dp_only", 0)):
        write_row(tmp_path / "R" / variant / f"seed-{seed}", variant, variant, seed, 0.8)
    write_json(tmp_path / "R" / "comparison.json", {"command": "samfed compare B --seeds 0,1"})
    return tmp_path / "R"


def test_section_has_runs_of_folder_and_command(folder):
    found = [str(run.relative_to(folder)) for run in runs_in(folder)]
    assert found == ["dp_only/seed-0", "samfed/seed-0", "samfed/seed-1"]
    (section,) = read_sections([f"From scratch = {folder}"])
    assert (section.title, section.command) == ("From scratch", "samfed compare B --seeds 0,1")
    assert {row.name: row.seeds for row in section.table.rows}["samfed"] == [0, 1]
    (section,) = read_sections([f"A={folder}"], ["A=make a B=1"])
    assert section.command == "make a B=1"


def test_invalid_sections_are_reported_together(folder):
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


def test_section_slugs_are_unique(folder):
    table = read_sections([f"A={folder}"])[0].table
    titles = ("ImageNet encoder", "imagenet, encoder!", "")
    assert unique_slugs([Section(title, table) for title in titles]) == ["imagenet-encoder", "imagenet-encoder-2", ""]


@pytest.fixture
def collection(tmp_path):
    for variant, dices in DICE.items():
        for seed, dice in enumerate(dices):
            write_row(tmp_path / "R" / variant / f"seed-{seed}", variant, variant, seed, dice)
    return tmp_path / "R"


@pytest.mark.parametrize("kind", ["page", "ablation"])
def test_command_writes_page_and_figures(collection, tmp_path, capsys, kind):
    page = tmp_path / "docs" / "polyp.md"
    words = ["--section", f"A={collection}", "--section", f"B={collection}", "--command", "make polyp"]
    words += ["--caveat", "A subset.", "--caveat", "Small."]
    words += ["--default", "mine"] if kind == "ablation" else ["--title", "Polyps"]
    assert main([kind, str(page), *words]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Ablations\n" if kind == "ablation" else "# Polyps\n\n```\nmake polyp\n```\n\n## In")
    assert ("| B | `samfed` |" in text) == (kind == "page")
    assert ("vs mine" in text) == (kind == "ablation")
    assert "- A subset.\n- Small.\n" in text
    assert sorted(path.name for path in page.parent.iterdir()) == ["polyp-a.png", "polyp-b.png", "polyp.md"]


def test_refused_command_exits_with_2(tmp_path, capsys):
    page = tmp_path / "p.md"
    assert main(["page", str(page), "--section", f"A={tmp_path / 'none.jsonl'}"]) == 2
    assert "none.jsonl: expected a record of runs, found no such file" in capsys.readouterr().err
    assert not page.exists()
