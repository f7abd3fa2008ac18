"""The documentation is correct: examples run, JSON parses, and named commands and files exist."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from samfed_monai.cli.main import COMMANDS, build_parser, main
from samfed_monai.config.options import OPTIONAL, shipped_plain
from samfed_monai.config.overrides import overrides_of
from samfed_monai.config.parse import WORKFLOWS
from samfed_monai.core.errors import Refused
from tests.conftest import forget_outside

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")])
IDS = OPTIONAL.union(*(shipped_plain(files[-1]) for files in WORKFLOWS.values()))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


@pytest.fixture(scope="module")
def examples():
    """All definitions in the Python blocks of docs/extending.md; registered objects are removed afterwards."""
    from samfed_monai.losses import AGREEMENT_RULES
    from samfed_monai.networks import CLIENT_NETWORKS

    module = sys.modules["docs_extending"] = types.ModuleType("docs_extending")  # a dataclass looks its module up
    names = vars(module)
    for block in blocks(REPOSITORY / "docs" / "extending.md", "python"):
        exec(compile(block, "docs/extending.md", "exec"), names)
    yield names
    del sys.modules["docs_extending"]
    AGREEMENT_RULES._entries.pop("both_sure")
    CLIENT_NETWORKS._entries.pop("three_layers")


def test_example_term_matches_hand_calculation(examples):
    from samfed_monai.handlers import Guidance

    term = examples["ConsistencyTerm"]()
    student = torch.zeros(1, 1, 1, 2)  # sigmoid 0.5
    guidance = Guidance(student=student, weak_view=student, guides={"ema": torch.tensor([[[[1.0, 0.5]]]])})
    assert term.value(guidance, None).item() == pytest.approx(0.125)  # (0.25 + 0) / 2
    assert (term.needs, term.where) == (("ema",), "terms#consistency")


def test_example_guide_blurs_soft_mask(examples):
    guide = examples["SmoothedGuide"](width=3)
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 2, 2] = 0.9
    image = torch.zeros(1, 3, 5, 5)
    blurred = guide({"image": image, "teacher": mask}, None)
    assert blurred[0, 0, 1:4, 1:4].flatten().tolist() == pytest.approx([0.1] * 9)
    assert guide.name == "smoothed"
    message = r"guides#smoothed \(SmoothedGuide\) -> key: expected the key 'teacher', .* or disable guides#smoothed and"
    with pytest.raises(Refused, match=message):
        guide({"image": image}, None)


def test_example_rule_is_used_by_name(examples):
    from samfed_monai.losses import agree

    teacher = torch.tensor([[[[0.99, 0.99, 0.01]]]])
    agreement = agree(teacher, torch.tensor([[[[0.95, 0.60, 0.99]]]]), rule="both_sure", tau=0.9)
    assert agreement.weight.flatten().tolist() == [1, 0, 0]
    assert agreement.label.flatten().tolist() == [1, 1, 0]


def test_example_network_is_built_by_name(examples):
    from samfed_monai.networks import client_network

    assert client_network("three_layers", width=4)(torch.zeros(2, 3, 8, 12)).shape == (2, 1, 8, 12)


def test_example_aggregator_takes_median(examples):
    from samfed_monai.protocol import Kind, Message, Server

    strategy = examples["Median"]().attach(Server(["a", "b", "c"], 1, weights={"w": torch.zeros(2)}))
    assert sorted(strategy.configure(0)) == ["a", "b", "c"]
    values = {"a": [1.0, 9.0], "b": [2.0, 8.0], "c": [300.0, -7.0]}
    common = {"kind": Kind.WEIGHTS, "round": 0, "rounds": 1, "n": 4}
    strategy.aggregate(0, {s: Message(site=s, tensors={"w": torch.tensor(v)}, **common) for s, v in values.items()})
    assert strategy.global_weights["w"].tolist() == [2.0, 8.0]


def test_example_method_is_found_in_installed_package(lab, capsys):
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    aggregator, method = text.split("## An aggregator")[1].split("## A method of your own")
    method = method.split("\n## ")[0]
    files = {
        "my_lab/__init__.py": "",
        "my_lab/median.py": re.findall(r"```python\n(.*?)```", aggregator, re.DOTALL)[0],
        "my_lab/median.json": re.findall(r"```json\n(.*?)```", method, re.DOTALL)[0],
    }
    kind, point = re.findall(r"\[options.entry_points\]\nsamfed_monai.(\S+) =\n    (.*?)\n", method)[0]
    lab(files, point, kind=kind)
    assert main(["variants"]) == 0
    row = r"^median +no_sam, but with the median of the sites' weights, entry by entry"
    assert re.search(row, capsys.readouterr().out, re.MULTILINE)
    assert main(["check", "samfed_skin", "--variant", "median"]) == 0
    assert capsys.readouterr().out.startswith("samfed_skin: no problems in train")


def test_example_exchange_shares_mean(examples, tmp_path: Path):
    from samfed_monai.privacy.allowed import allowed_of, tensor_problems
    from samfed_monai.protocol import Message
    from tests.federation.unlike import run_unlike

    sites = {}

    def share(clients):
        sites.update(clients)
        for client in clients.values():
            client.own.algorithm = examples["ShareCoverage"](masks=client.own.algorithm)

    result, _, strategy = run_unlike(tmp_path, rounds=2, strategy=examples["MeanCoverage"](), change=share)
    terms = [[entry["terms"].get("others_cover") for entry in record["sites"].values()] for record in result.records]
    assert terms[0] == [None, None]
    assert terms[1][0] == terms[1][1]
    assert 0 < terms[1][0] < 1
    assert {record["sites"][site]["status"] for record in result.records for site in record["sites"]} == {"ok"}
    assert strategy.global_weights == {}
    for site, client in sites.items():  # and a site releases it
        kind, tensors = client.own.algorithm.share()
        assert tensor_problems(Message(kind, site, 1, 2, tensors=tensors), allowed_of(client)) == []


def test_example_transport_sends_messages_and_limits_size(examples):
    from samfed_monai.protocol import Failure, Kind, Message, Task, from_bytes, to_bytes, wire_size

    def send(site, task, payload):
        assert task is Task.TRAIN
        request = from_bytes(payload)
        return to_bytes(Message(Kind.WEIGHTS, site, 0, 1, tensors={"w": request.tensors["w"] + 1}))

    carrier, seen = examples["Carrier"](["b", "a"], send), {}
    messages = {site: Message(Kind.WEIGHTS, site, 0, 1, tensors={"w": torch.zeros(9)}) for site in carrier.sites}
    limits = {"a": wire_size(messages["a"]), "b": 30}
    replies = carrier.send_and_receive(
        Task.TRAIN,
        messages,
        on_reply=lambda site, reply: seen.setdefault(site, reply.tensors["w"].tolist()),
        max_bytes=limits.__getitem__,
    )
    assert seen == {"a": [1.0] * 9}
    assert replies["a"].tensors == {}  # released after on_reply
    assert isinstance(replies["b"], Failure)
    assert carrier.send_and_receive(Task.TRAIN, messages)["b"].tensors["w"].tolist() == [1.0] * 9


def test_example_source_pairs_images_and_masks(examples, tmp_path: Path):
    for name in ("p1/a.jpg", "p1/a_lesion.png", "p2/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = examples["find_my_archive"](tmp_path)
    assert [(item.image, item.label, item.group) for item in found] == [
        ("p1/a.jpg", "p1/a_lesion.png", "p1"),
        ("p2/b.jpg", None, "p2"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_blocks_of_page_parse(page: Path):
    for block in blocks(page, "json"):
        text = block if block.lstrip().startswith(("{", "[")) else "{" + block + "}"
        json.loads(text)
        assert '"$' not in text, "an expression: a component says it as well, and `samfed check --strict` takes that"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_make_targets_of_page_exist(page: Path):
    text = "\n".join([*blocks(page, "bash"), *re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))])
    assert set(re.findall(r"^samfed +([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)
    rules = "".join((REPOSITORY / name).read_text(encoding="utf-8") for name in ("Makefile", "study/results.mk"))
    targets = set(re.findall(r"^([a-z-]+):", rules, re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `samfed` command in a page's shell blocks, with continued lines joined and no comments."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    split = [re.split(r"\s*(?:&&|\||;|>|2>)\s*", line)[0] for line in lines if re.match(r"\s*samfed\s", line)]
    return [shlex.split(re.sub(r"\s#.*", "", line))[1:] for line in split]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_of_page_parse(page: Path, capsys):
    """The command reports unknown options and missing arguments; ids of bundles are left to the checks."""
    for words in commands(page):
        whole = not {"...", "…"} & set(words)
        given = [word for word in words if word not in ("...", "…")]
        arguments, extra = None, []
        with contextlib.suppress(SystemExit):  # also of --help and --version
            arguments, extra = build_parser().parse_known_args(given)
        error = capsys.readouterr().err
        if "error:" in error:
            assert not whole, f"{page.name}: samfed {words}: {error}"
            assert "required" in error
            continue
        known = not extra or getattr(arguments, "takes_overrides", False)
        assert known, f"{page.name}: samfed {words}: unknown {extra}"
        assert {key for key in overrides_of(extra) if "#" not in key} <= IDS, (words, extra)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_page_exist(page: Path):
    written_by_a_command = {"docs/images/report.png", "docs/benchmarks.md"}
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
    for file, anchor in links:
        target = (page.parent / file).resolve() if file else page
        if target.relative_to(REPOSITORY).as_posix() not in written_by_a_command:
            assert target.exists(), f"{page.name} links to {file}"
        if anchor and target.suffix == ".md" and target.is_file():
            text = re.sub(r"(?ms)^```.*?^```", "", target.read_text(encoding="utf-8"))
            headings = re.findall(r"(?m)^#+ +(.+?) *$", text)
            anchors = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
            assert anchor in anchors, f"{page.name} links to {file}#{anchor}"


def test_messages_on_faults_page_are_in_source():
    rows = re.findall(r"^\| (`.*?) \|", (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [words for row in rows for words in re.findall(r"`([^`]+)`", row)]
    files = (REPOSITORY / "samfed_monai").rglob("*.py")
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = "\0".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    assert len(quoted) > 60
    assert [words for words in quoted if words not in texts] == []


def test_faults_cited_on_security_page_have_tests():
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\((?:faults )?(\d+(?:(?:, | to )\d+)*)\)", page)
    cited = [text for text in numbers if int(re.split(", | ", text)[0]) < 1000]
    names = " ".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    tested = _numbers(re.findall(r"test_faults?_([0-9]+(?:_(?:to|and)_[0-9]+)*)", names))
    assert len(cited) > 15
    assert _numbers(cited) - tested == set()


def _numbers(texts: list[str]) -> set[int]:
    """The numbers in ``31``, ``31, 36``, ``55 to 60`` and ``32_to_38``."""
    found: set[int] = set()
    for text in texts:
        for part in re.split(r", |_and_", text):
            first, *last = map(int, re.split(r"_to_| to ", part))
            found |= set(range(first, (last or [first])[0] + 1))
    return found


def test_reference_lists_every_package_and_method():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs" / "reference").glob("*.md")}
    rooms = {path.parent.name for path in (REPOSITORY / "samfed_monai").glob("*/__init__.pyi")}
    methods = {path.stem for path in (REPOSITORY / "samfed_monai" / "methods").glob("[!_]*.py")}
    assert {room for room in rooms if f"::: samfed_monai.{room}\n" not in pages.get(room, "")} == {"reports"}
    assert methods <= set(re.findall(r"::: samfed_monai\.methods\.(\w+)", pages["methods"]))  # one may be deleted


def test_docstring_roles_become_markdown():
    pytest.importorskip("griffe", reason="griffe is not installed: pip install samfed-monai[docs]")
    spec = importlib.util.spec_from_file_location("sphinx_roles", REPOSITORY / "docs" / "sphinx_roles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "See :func:`~samfed_monai.losses.agree` and :meth:`Term.value`, ``(B, 1)``.\n\nExample::\n"
    expected = "See [`agree`][samfed_monai.losses.agree] and `Term.value`, `(B, 1)`.\n\nExample:\n"
    assert module.as_markdown(text) == expected


# The examples do not depend on sizes and numbers.
SMALLER = {
    "--images-per-site 12 --public 12": "--images-per-site 5 --public 6 --size 96 128",
    "--epochs 6 ": "--epochs 1 --size 64 ",
    "--rounds 2 --image_size 128 --local_steps 6": "--rounds 1 --image_size 32 --local_steps 1",
    "--warm_start_steps 30": "--warm_start_steps 2",
    "'--teacher#views' 1": "'--teacher#views' 1 '--teacher#size' 64",
}


@pytest.mark.slow
@pytest.mark.data
def test_examples_of_start_page_run(samfed_data: Path, tmp_path: Path, monkeypatch, capfd, request):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "mobile_sam.pt").symlink_to(samfed_data / "weights" / "mobile_sam.pt")  # so that nothing is fetched
    listed = commands(REPOSITORY / "docs" / "start.md")
    first = next(number for number, words in enumerate(listed) if words[:2] == ["prepare", "synthetic"])
    text = "\n".join(map(shlex.join, listed[first - 1 :]))  # earlier commands install weights from elsewhere
    for whole, part in {"--from registry": f"--from {samfed_data}/weights/mobile_sam.pt", **SMALLER}.items():
        assert whole in text
        text = text.replace(whole, part)
    monkeypatch.setenv("SAMFED_WEIGHTS", str(weights))
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(forget_outside)
    package = tmp_path / "site"
    for line in text.splitlines():
        monkeypatch.setattr(sys, "argv", ["samfed", *shlex.split(line)])  # `export` reads the bundle from it
        assert main(sys.argv[1:]) == 0, line
        if line.startswith("new network "):  # like the page's `pip install -e`, but not into this environment
            quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
            words = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(package), "./samfed-my-net"]
            subprocess.run(words, check=True)
            monkeypatch.syspath_prepend(package)
            forget_outside()
    printed = "".join(capfd.readouterr())
    # as on the page; or for a teacher of one epoch on six images, that it finds nothing at all
    assert re.search("The teacher (is wrong more often than right|finds nothing that is right)", printed)
    assert (tmp_path / "runs" / "both").is_dir()
    assert (tmp_path / "my_net.ts").is_file()
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(list((tmp_path / "images/site-1/images").iterdir()))
