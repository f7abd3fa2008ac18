"""Terms of methods refuse missing views, guides, streams and unsuitable networks by name."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import GlobalGuide, Guidance, UnlabelledStream
from tests.handlers.toy import Shown, toy_loader, toy_network, toy_trainer
from tests.methods import engine_of

DATA = {"data": None, "transform": None, "split": "unlabelled"}
#: Arguments, required views and options that name a guide, by class.
TERMS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "cpss.StyleSwapTerm": ({}, ("image_strong",), ("guide",)),
    "drflm.LocalMixUpTerm": ({}, ("image",), ("guide",)),
    "fedca.ContrastiveTerm": ({}, ("image_strong", "image"), ()),
    "fedda.DomainAlignmentTerm": ({"guide": GlobalGuide()}, ("image",), ()),
    "fedsemidg.DropoutAlignmentTerm": ({"network": Shown()}, ("image_strong",), ()),
    "fedsemidg.DualGuideTerm": ({}, (), ("first", "second")),
    "hssf.LsslTerm": ({}, ("image",), ()),
    "mean_teacher.ConsistencyTerm": ({}, (), ("guide",)),
    "see.RefinedLabelTerm": (DATA, ("teacher",), ()),
    "semifl.MixUpTerm": ({}, ("image",), ("guide",)),
    "unimatch.UniMatchTerm": ({}, ("image_strong2", "image"), ()),
}
TERMS = {name: row for name, row in TERMS.items() if find_spec(f"samfed_monai.methods.{name.partition('.')[0]}")}
VIEWS = [(name, view) for name, (_, views, _) in TERMS.items() for view in views]
GUIDES = [(name, option) for name, (_, _, options) in TERMS.items() for option in options]
#: Terms with requirements for the network.
OF_A_NETWORK = {
    "cpss.StyleSwapTerm": "an encoder that returns ",
    "fedca.ContrastiveTerm": "an encoder that returns ",
    "fedda.DomainAlignmentTerm": "an encoder that returns ",
    "hssf.LsslTerm": "a network that predicts its confidence",
    "unimatch.UniMatchTerm": "an encoder that returns ",
}


def term(name: str, **options: Any) -> Any:
    module, _, kind = name.partition(".")
    return getattr(import_module(f"samfed_monai.methods.{module}"), kind)(**TERMS[name][0], **options)


def compute(made: Any, views: set[str], *, mixed: bool = False) -> None:
    """The term's value for a batch of these views, with the guides ``weak``, ``global`` and ``ema``."""
    mask, network = torch.full((2, 1, 8, 8), 0.5), Shown()
    if hasattr(getattr(made, "_features", None), "inputs"):
        made._features.inputs = [torch.zeros(2, 8, 8, 8)] * 2
    batch = {view: mask if view == "teacher" else torch.zeros(2, 3, 8, 8) for view in sorted(views)}
    guides = {"global": mask, "ema": mask}
    guidance = Guidance(student=mask, weak_view=mask, guides=guides, batch=batch, mixed=mixed)
    public = {"image": torch.zeros(2, 3, 8, 8), "label": mask, "teacher": mask}
    made.value(guidance, engine_of(network, epoch_length=2, batch=public, output={"pred": mask}))


@pytest.mark.parametrize(("name", "view"), VIEWS)
def test_missing_view_is_refused_with_available_views(name, view):
    made, views = term(name), {"image", "image_strong", "image_strong2"} - {view}
    found = re.escape(str(sorted(views)))
    with pytest.raises(Refused, match=rf"^.*\n.*{made.where}: expected the view '{view}', found .* with {found}; add"):
        compute(made, views)


@pytest.mark.parametrize("name", dict(VIEWS))
def test_cutmix_is_refused_for_terms_with_views(name):
    made = term(name)
    message = rf"stream#cutmix: expected 0 with {made.where}, found CutMix, .*; set it to 0, or disable {made.where}"
    with pytest.raises(Refused, match=message):
        compute(made, {"image", "image_strong", "image_strong2", "teacher"}, mixed=True)


@pytest.mark.parametrize(("name", "option"), GUIDES)
def test_unknown_guide_is_refused(name, option):
    made = term(name, **{option: "sma"})
    with pytest.raises(Refused, match=rf"{made.where}: expected one of .* found the guide 'sma'; did you mean"):
        compute(made, {"image", "image_strong"})


@pytest.mark.parametrize("name", sorted(OF_A_NETWORK.keys() & TERMS.keys()))
def test_unsuitable_network_is_refused_before_training(name):
    made = term(name)
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[GlobalGuide()]), made], network=toy_network())
    with pytest.raises(Refused, match=rf"{made.where}: expected {OF_A_NETWORK[name]}.*found Sequential; "):
        trainer.run()
    assert trainer.state.iteration == 0


@pytest.mark.parametrize("name", sorted(TERMS.keys() - {"see.RefinedLabelTerm", "fedsemidg.DropoutAlignmentTerm"}))
def test_missing_stream_is_refused_before_training(name):
    made = term(name)
    trainer = toy_trainer([made], network=Shown())
    with pytest.raises(Refused, match=rf"{made.where}: expected an? .*"):
        trainer.run()
    assert trainer.state.iteration == 0
