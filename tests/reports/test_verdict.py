from __future__ import annotations

import pytest

from samfed_monai.reports import comparison_table
from samfed_monai.reports.compare_forms import standings, verdict, word_of
from samfed_monai.reports.rows import ABLATIONS, ONE_NETWORK, Cell, Group, Row

from .runs import write_run


def group_of(tmp_path, **dices):
    folders = [
        write_run(tmp_path / f"{variant}-{seed}", variant, seed, dice)
        for variant, found in dices.items()
        for seed, dice in enumerate(found)
    ]
    return comparison_table(folders).groups[0]


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.02, 0.04, 0.06], "leads"),  # 0.04 ± 0.02
        ([-0.02, 0.02, 0.06], "within the spread"),  # 0.02 ± 0.04
        ([-0.02, -0.04, -0.06], "trails"),
        ([0.0, 0.0], "within the spread"),
        ([0.5], "one seed"),
        ([], "no seed in common"),
    ],
)
def test_a_difference_counts_where_it_is_larger_than_its_spread(differences, word):
    assert word_of(Cell(dict(enumerate(differences)))) == word


def test_the_verdict_is_on_the_strongest_other_method(tmp_path):
    ablation = sorted(ABLATIONS)[0]
    group = group_of(
        tmp_path,
        samfed=[0.84, 0.86, 0.88],
        no_sam=[0.80, 0.83, 0.85],
        dp_only=[0.70, 0.70, 0.70],
        oracle=[0.95, 0.95, 0.95],
        **{ablation: [0.90, 0.90, 0.90]},
    )
    assert verdict(group) == (
        "SAM-Fed leads, by more than the spread: Dice +0.033 ± 0.006 to the strongest other row, "
        "Federated, no SAM (`no_sam`); ahead in 3 of 3 seeds. At the worst site: +0.033 ± 0.006, it leads."
    )
    found = {standing.other.name: (standing.ahead, standing.word) for standing in standings(group)}
    assert found["oracle"] == (0, "trails")
    assert found[ablation] == (0, "trails")
    assert found["dp_only"] == (3, "leads")


def test_where_hospitals_took_no_part_it_says_how_samfed_does_there(tmp_path):
    folders = [
        write_run(tmp_path / f"{variant}-{seed}", variant, seed, dice, unseen=unseen)
        for variant, dice, found in (("samfed", 0.8, [0.70, 0.72]), ("dp_only", 0.7, [0.60, 0.64]))
        for seed, unseen in enumerate(found)
    ]
    (group,) = comparison_table(folders).groups
    assert standings(group)[0].unseen.by_seed == pytest.approx({0: 0.10, 1: 0.08})
    assert str(verdict(group)).endswith("On hospitals that took no part: +0.090 ± 0.014, it leads.")


def test_a_row_that_scatters_is_named_where_the_strongest_one_is_beaten(tmp_path):
    group = group_of(tmp_path, samfed=[0.80, 0.80, 0.80], no_sam=[0.78, 0.77, 0.76], dp_only=[0.79, 0.79, 0.70])
    assert str(verdict(group)).startswith("SAM-Fed leads, by more than the spread: Dice +0.030 ± 0.010")
    assert "ahead in 3 of 3 seeds. Within the spread of: Public set only." in str(verdict(group))


def test_the_worst_site_has_a_word_of_its_own():
    cells = {
        "samfed": {"dice": Cell({0: 0.80, 1: 0.80}), "worst": Cell({0: 0.70, 1: 0.60})},
        "no_sam": {"dice": Cell({0: 0.75, 1: 0.77}), "worst": Cell({0: 0.60, 1: 0.68})},
    }
    rows = [Row(name, [0, 1], found, variant=name, title=name) for name, found in cells.items()]
    text = str(verdict(Group(ONE_NETWORK, "", rows)))
    assert text.startswith("SAM-Fed leads, by more than the spread: Dice +0.040 ± 0.014")
    assert text.endswith("ahead in 2 of 2 seeds. At the worst site: +0.010 ± 0.127, within the spread.")


def test_among_sites_with_labels_the_method_is_pfedsam(tmp_path):
    dices = {"pfedsam_joint": [0.80, 0.82], "fedsam": [0.77, 0.78], "local_sam": [0.70, 0.71], "samfed": [0.60, 0.60]}
    unlabelled, labelled = comparison_table(
        write_run(tmp_path / f"{variant}-{seed}", variant, seed, dice)
        for variant, found in dices.items()
        for seed, dice in enumerate(found)
    ).groups
    assert (unlabelled.label, labelled.label) == ("Homogeneous", "Own labels")
    assert verdict(unlabelled) is None
    assert str(verdict(labelled)).startswith(
        "pFedSAM in one stage leads, by more than the spread: Dice +0.035 ± 0.007 to the strongest other row, "
        "FedSAM (`fedsam`)"
    )
    assert labelled.get("pfedsam_joint").cells["vs:local_sam"].by_seed == pytest.approx({0: 0.10, 1: 0.11})


@pytest.mark.parametrize(
    ("dices", "text"),
    [
        ([0.80, 0.90], "SAM-Fed neither leads nor trails beyond the spread: Dice +0.000 ± 0.071 to"),
        (
            [0.94, 0.96],
            "SAM-Fed does not lead: Dice -0.100 ± 0.014 to the strongest other row, Federated, no SAM (`no_sam`)",
        ),
    ],
)
def test_a_verdict_against_sam_fed_is_said_as_plainly(tmp_path, dices, text):
    assert text in verdict(group_of(tmp_path, samfed=[0.85, 0.85], no_sam=dices))


def test_one_seed_has_no_verdict_and_no_rival_neither(tmp_path):
    one = verdict(group_of(tmp_path / "a", samfed=[0.85], no_sam=[0.80]))
    assert one.startswith("One seed: SAM-Fed's Dice is +0.050 to the strongest other row")
    assert verdict(group_of(tmp_path / "b", samfed=[0.85, 0.85], oracle=[0.9, 0.9])) is None
    assert verdict(group_of(tmp_path / "c", no_sam=[0.85, 0.85])) is None
