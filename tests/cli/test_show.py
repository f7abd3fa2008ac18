"""``samfed show``: what a workflow would use, and where it is set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import build_parser, main
from samfed_monai.cli.show import configuration
from samfed_monai.cli.show import shown as ids_of
from samfed_monai.config import known_variants
from samfed_monai.core.errors import Refused
from tests.methods import needs

REPOSITORY = Path(__file__).resolve().parents[2]
FILES: dict[str, Any] = {
    "metadata": {"version": "0.1.0"},
    "train": {
        "rate": 0.1,
        "steps": None,
        "folder": "@root",
        "root": ".",
        "imports": [],
        "_below": "a note",
        "optimizer": {"_target_": "torch.optim.Adam", "lr": "@rate"},
        "terms": {"kd": {"weight": 1.0, "loss": "@optimizer"}, "list": [{"a": 1}, {}]},
    },
    "evaluate": {"steps": 3, "split": "test"},
    "teacher": {"views": 1, "size": 64},
    "federate": {
        "rounds": 2,
        "rate": 0.3,
        "variant": "gentle",
        "terms#kd#weight": 2.0,
        "sites": {},
        "teacher": {"views": 8},
    },
    "variants/base": {"_note": "the base", "optimizer#lr": 0.5, "terms#kd#weight": 0.5},
    "variants/gentle": {"_method": {"base": "base"}, "terms#kd#weight": 0.25, "steps": 7},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "toy"
    (root / "configs" / "variants").mkdir(parents=True)
    for name, content in FILES.items():
        (root / "configs" / f"{name}.json").write_text(json.dumps(content))
    return root


def shown(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: Any) -> Any:
    return json.loads(shown(capsys, *words, "--json"))


def test_variant_base_and_command_line_are_layered(bundle, capsys):
    assert shown(capsys, bundle, "--variant", "gentle", "--rate", 0.2, "--terms::kd::weight", 4) == (
        "toy, train: train.json, variant base, variant gentle, command line\n"
        "\n"
        "id               value        from            replaced\n"
        "rate             0.2          command line    0.1 (train.json)\n"
        "steps            7            variant gentle  null (train.json)\n"
        'folder           @root = "."  train.json\n'
        'root             "."          train.json\n'
        'optimizer#lr     0.5          variant base    "@rate" (train.json)\n'
        "terms#kd#weight  4            command line    0.25 (variant gentle), 0.5 (variant base), 1.0 (train.json)\n"
        "\n"
        "5 more ids with --all\n"
    )


def stars(text: str) -> list[str]:
    return re.findall(r"^(\S+) \*", text, re.MULTILINE)


def test_unused_settings_are_starred(capsys):
    page = shown(capsys, "samfed_skin")
    assert stars(page) == ["teacher_adapt", "exchange"], "a federation alone reads them"
    assert "\n* this workflow does not read this id\n" in page
    assert stars(shown(capsys, "samfed_skin", "--workflow", "federate")) == []
    assert "* nothing" not in shown(capsys, "samfed_skin", "--workflow", "inference")
    assert stars(shown(capsys, "samfed_skin", "--workflow", "teacher")) == ["score"]


@needs("no_sam_kd")
def test_settings_of_disabled_components_are_starred(capsys):
    words = ["samfed_skin", "--variant", "no_sam_kd", "--terms#sam_kd#weight", "0.5"]
    assert stars(shown(capsys, *words)) == ["teacher_adapt", "terms#sam_kd#weight", "exchange"]
    federated = shown(capsys, words[0], "--workflow", "federate", *words[1:3], "--terms#sam_kd#weight", "0.5")
    assert stars(federated) == ["terms#sam_kd#weight"]
    whole = json.loads(shown(capsys, *words, "--json"))
    assert whole["terms#sam_kd#weight"]["read"] is False
    assert "read" not in whole["learning_rate"]


def test_id_option_shows_one_part(bundle, capsys):
    assert shown(capsys, bundle, "--id", "terms") == (
        "toy, train: train.json, command line\n"
        "\n"
        "id               value       from        replaced\n"
        "terms#kd#weight  1.0         train.json\n"
        "terms#kd#loss    @optimizer  train.json\n"
        "terms#list#0#a   1           train.json\n"
        "terms#list#1     {}          train.json\n"
    )
    assert list(as_json(capsys, bundle, "--id", "optimizer::lr")) == ["optimizer#lr"]


def test_all_ids_have_value_source_and_replaced_values(bundle, capsys):
    content = as_json(capsys, bundle, "--variant", "gentle", "--all")
    assert list(content) == [
        *("rate", "steps", "folder", "root", "imports", "optimizer#_target_", "optimizer#lr"),
        *("terms#kd#weight", "terms#kd#loss", "terms#list#0#a", "terms#list#1"),
    ]
    replaced = [{"value": 0.5, "from": "variant base"}, {"value": 1.0, "from": "train.json"}]
    assert content["terms#kd#weight"] == {"value": 0.25, "from": "variant gentle", "replaced": replaced}
    assert content["folder"] == {"value": "@root", "leads_to": ".", "from": "train.json", "replaced": []}
    assert content["terms#kd#loss"] == {"value": "@optimizer", "from": "train.json", "replaced": []}


def test_option_reference_resolves_to_value(bundle, capsys):
    assert as_json(capsys, bundle, "--rate", 0.7, "--id", "optimizer#lr")["optimizer#lr"]["leads_to"] == 0.7
    pinned = as_json(capsys, bundle, "--rate", 0.7, "--id", "optimizer#lr", "--variant", "base")["optimizer#lr"]
    assert (pinned["value"], pinned["from"], "leads_to" in pinned) == (0.5, "variant base", False)


def test_evaluate_overrides_train(bundle, capsys):
    content = as_json(capsys, bundle, "--workflow", "evaluate")
    replaced = [{"value": None, "from": "train.json"}]
    assert content["steps"] == {"value": 3, "from": "evaluate.json", "replaced": replaced}
    assert content["rate"]["from"] == "train.json"


def test_federate_shows_settings_of_sites_and_teacher(bundle, capsys):
    content = as_json(capsys, bundle, "--workflow", "federate", "--variant", "base", "--rate", 0.9, "--steps", 5)
    assert {
        name: (each["value"], each["from"], [old["from"] for old in each["replaced"]]) for name, each in content.items()
    } == {
        "rate": (0.9, "command line", ["federate.json", "train.json"]),
        "steps": (5, "command line", ["train.json"]),
        "folder": ("@root", "train.json", []),
        "root": (".", "train.json", []),
        "optimizer#lr": (0.5, "variant base", ["train.json"]),
        "terms#kd#weight": (2.0, "federate.json", ["variant base", "train.json"]),
        "rounds": (2, "federate.json", []),
        "variant": ("base", "command line", ["federate.json"]),
        "teacher#views": (8, "federate.json", []),
    }


def test_default_argument_of_component_can_be_overridden(bundle, capsys):
    assert as_json(capsys, bundle, "--optimizer#amsgrad", "true")["optimizer#amsgrad"]["value"] is True


def test_replaced_component_drops_old_arguments(bundle, capsys):
    (bundle / "configs" / "variants" / "base.json").write_text('{"optimizer": {"_target_": "torch.optim.SGD", "m": 1}}')
    content = as_json(capsys, bundle, "--variant", "gentle", "--id", "optimizer")
    replaced = [{"value": "torch.optim.Adam", "from": "train.json"}]
    assert content == {
        "optimizer#_target_": {"value": "torch.optim.SGD", "from": "variant base", "replaced": replaced},
        "optimizer#m": {"value": 1, "from": "variant base", "replaced": []},
    }


def test_long_value_is_truncated_in_table_only(bundle, capsys):
    long = "x" * 80
    assert f'"{"x" * 58}…  command line' in shown(capsys, bundle, "--root", long)
    assert as_json(capsys, bundle, "--root", long)["root"]["value"] == long


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--rat", "1", "--views", "2"],
            r"2 problems\n.* rat: .*; did you mean 'rate'\?\n.* views: .*; this id belongs to teacher",
        ),
        (["--optimizer#learning_rate", "1"], r"command line -> optimizer#learning_rate: .* found an unknown id"),
        (["--workflow", "federate", "--rat", "1"], r"command line -> rat: .*did you mean 'rate'\?"),
        (["--workflow", "tran"], r"workflow: expected one of \[.*\], found 'tran'; did you mean 'train'\?"),
        (["--workflow", "inference"], r"inference.json: expected a readable file, found No such file"),
        (["--variant", "no_sam"], r"no_sam.json -> teacher_adapt: expected an id of this workflow"),
        (
            ["--workflow", "teacher", "--variant", "base"],
            "--variant: expected no variant: .*, found 'base' with --workflow te",
        ),
        (["--id", "terms#kdd"], r"--id: expected an id of this workflow, found 'terms#kdd'; did you mean 'terms#kd'\?"),
        (["--id", "optimizer#betas"], r"--id: .*; no file sets it; the component's default applies"),
        (["stray"], r"command line: expected `--key value` pairs after the command's own arguments, found 'stray'"),
    ],
)
def test_invalid_arguments_are_refused(bundle, words, message):
    arguments, arguments.extra = build_parser().parse_known_args(["show", str(bundle), *words])
    with pytest.raises(Refused, match=message):
        arguments.run(arguments)


def test_invalid_json_is_refused(bundle):
    (bundle / "configs" / "train.json").write_text("{")
    with pytest.raises(Refused, match=r"train.json"):
        configuration(bundle, "train", None, {})


@pytest.mark.parametrize("variant", known_variants())
def test_every_packaged_variant_is_shown(variant):
    ids = list(ids_of(configuration(REPOSITORY / "bundles" / "samfed_skin", "federate", variant, {})))
    assert all(each.values for each in ids)
    assert variant == "samfed" or f"variant {variant}" in {each.values[0][0] for each in ids}


def test_documentation_example_matches_output(capsys):
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    ((words, written),) = re.findall(r"```bash\nsamfed show ([^\n]*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert shown(capsys, *words.split()) == written
