"""Formatting of numbers and names."""

from samfed_monai.reports.style import as_bytes, as_difference, as_percent, as_ranges, as_score, as_seconds, shortened


def test_sizes_durations_and_scores_are_formatted():
    sizes = {0: "0 B", 512: "512 B", 1000: "1 kB", 49_250_000: "49.2 MB", 6.31e9: "6.31 GB", 1.2e12: "1,200 GB"}
    assert {value: as_bytes(value) for value in sizes} == sizes
    times = {0: "0 s", 0.44: "0.4 s", 31: "31 s", 59.7: "1 min 00 s", 252: "4 min 12 s", 3780: "1 h 03 min"}
    assert {value: as_seconds(value) for value in times} == times
    assert (as_score(None), as_score(None, 1), as_percent(None)) == ("–", "–", "–")
    assert (as_score(0.8494), as_score(9.04, 1), as_percent(0.474)) == ("0.849", "9.0", "47 %")


def test_differences_have_sign_and_rounds_are_ranges():
    assert [as_difference(value) for value in (0.04, -0.04, -0.0004, 0.0)] == ["+0.040", "-0.040", "+0.000", "+0.000"]
    assert as_difference(-1.26, 1) == "-1.3"
    assert as_ranges([16, 6, 8, 9, 10, 9]) == "6, 8–10, 16"
    assert as_ranges([]) == ""


def test_long_names_are_shortened_and_stay_distinct():
    assert shortened(["Oslo", "Universitätsklinikum"], 9) == ["Oslo", "Univ…ikum"]
    middle = ["north_of_a_clinic", "north_of_b_clinic"]
    assert shortened(middle, 7) == middle, "only their middle tells them apart"
    assert shortened(["Universitätsklinikum 1", "Universitätsklinikum 2"], 3) == ["U…1", "U…2"]
    assert shortened([], 5) == []
