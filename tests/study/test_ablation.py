import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.reports import comparison_table
from study.ablation import block, sweeps, verdict, write_ablation
from study.page import Section
from tests.reports.runs import write_row, write_run

DICES = {
    "Polyp": {"samfed": [0.60, 0.62, 0.64], "intersection": [0.61, 0.63, 0.65], "learned": [0.66, 0.67, 0.71]},
    "Skin": {"samfed": [0.84, 0.85, 0.86], "intersection": [0.86, 0.85, 0.87], "learned": [0.83, 0.84, 0.85]},
}


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    return tmp_path_factory.mktemp("collections")


@pytest.fixture(scope="module")
def sections(collections):
    made = []
    for collection, rows in DICES.items():
        folders = [write_run(collections / collection / f"oracle-{seed}", "oracle", seed, 0.95) for seed in range(3)]
        folders += [
            write_row(
                collections / collection / f"{row}-{seed}",
                row,
                "samfed",
                seed,
                dice,
                place=place,
                sweep="" if row == "samfed" else "Agreement rule",
                note=f"about {row}",
            )
            for place, (row, dices) in enumerate(rows.items())
            for seed, dice in enumerate(dices)
        ]
        made.append(Section(collection, comparison_table(folders), f"samfed compare {collection}"))
    return made


def test_sweep_has_default_first_and_best_in_bold(sections):
    found = sweeps(sections)
    assert {name: [line.row.name for line in lines] for name, lines in found.items()} == {
        "Agreement rule": ["samfed", "intersection", "learned"],
        "Variants": ["samfed", "teacher", "oracle"],
    }
    table = block("Average Dice", found["Agreement rule"], sections)
    assert table.heads == ["Polyp", "vs samfed", "Skin", "vs samfed", "Mean difference"]
    assert table.rows == {
        "samfed": ["0.620 ± 0.020", "–", "0.850 ± 0.010", "–", "–"],
        "intersection": ["0.630 ± 0.020", "+0.010 ± 0.000", "**0.860 ± 0.010**", "+0.010 ± 0.010", "+0.010"],
        "learned": ["**0.680 ± 0.026**", "+0.060 ± 0.010", "0.840 ± 0.010", "-0.010 ± 0.000", "**+0.025**"],
    }


def test_sweep_verdict_names_best_row(sections):
    found = sweeps(sections)
    assert verdict(found["Agreement rule"], sections) == (
        "Best: `learned`, against the default: Polyp +0.060 ± 0.010 (leads); Skin -0.010 ± 0.000 (trails); "
        "beyond the spread on 1 of 2."
    )
    assert verdict(found["Variants"], sections).startswith("No row is better than SAM-Fed (`samfed`)")


def test_rows_of_incomplete_sweep_are_listed_by_collection(sections, collections, tmp_path):
    extra = [write_row(tmp_path / "e", "only_polyp", "samfed", 0, 0.97, sweep="Teacher")]
    table = comparison_table([*(p.parent for p in (collections / "Polyp").glob("*/results.json")), *extra])
    both = [Section("Polyp", table), sections[1]]
    expected = "Polyp: SAM-Fed (`samfed`) 0.620 ± 0.020; `only_polyp` +0.370. Skin: SAM-Fed (`samfed`) 0.850 ± 0.010."
    assert verdict(sweeps(both)["Teacher"], both) == expected
    assert sweeps(both, "samfed", "only_polyp")["Teacher"][0].differences[1].mean is None, "nor against itself there"


def test_other_default_is_used_and_missing_default_refused(sections):
    found = sweeps(sections, "samfed", "learned")
    assert [lines[0].row.name for lines in found.values()] == ["learned", "samfed"]
    with pytest.raises(Refused, match=r"Polyp: expected a row 'box', which the others .*, found no such row; run it"):
        sweeps(sections, "box")


def test_default_row_can_be_best(tmp_path):
    folders = [
        write_row(tmp_path / name, name, variant, 0, dice, sweep="Threshold")
        for name, variant, dice in (("dp_only", "dp_only", 0.8), ("tau", "no_sam", 0.7))
    ]
    sections = [Section("", comparison_table(folders))]
    lines = sweeps(sections, "dp_only")["Threshold"]
    assert verdict(lines, sections) == "Public set only (`dp_only`) 0.800; `tau` -0.100."
    assert block("Dice", lines, sections).rows == {"dp_only": ["**0.800**", "–"], "tau": ["0.700", "-0.100"]}
    write_ablation(tmp_path / "page.md", sections, defaults=["dp_only"])
    assert "gap closed" not in (tmp_path / "page.md").read_text()
