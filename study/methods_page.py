"""The page of methods, ``docs/methods.md``, from the declarations in their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from samfed_monai.config.method import CLASSES, EXCHANGES, LABELS, LEAVES_SITE
from samfed_monai.config.variants import variant_files
from samfed_monai.core.io import read_json

if TYPE_CHECKING:
    from samfed_monai.config.method import Method

_PUBLIC = {
    "public": "public images with masks; {own}",
    "labelled": "{own}; public ones only for a warm start, if there are any",
    "unlabelled": "{own}, and no public images",
}
"""What a method needs, by the split of its training images (``train#dataset#split``)."""


def methods_page(methods: Iterable[Method], measured: Mapping[str, str] | None = None, advice: str = "") -> str:
    """The page in Markdown; the same declarations give the same bytes.

    Args:
        methods: in the order of the page.
        measured: name to a sentence with the method's results; may lack methods.
        advice: a section on which method to choose.
    """
    methods, measured = list(methods), measured or {}
    rows = [f"| [`{m.name}`](#{m.name}) | {m.note} | {m.exchange} | {m.labels} | {m.classes} |" for m in methods]
    words = [
        *(f"| exchange | `{word}` | {text} |" for word, text in EXCHANGES.items()),
        *(f"| labels | `{word}` | {text} |" for word, text in LABELS.items()),
        *(f"| classes | `{word}` | {text} |" for word, text in CLASSES.items()),
        *(f"| leaves a site | `{word}` | {text} |" for word, text in LEAVES_SITE.items()),
    ]
    sections = [_section(method, measured.get(method.name)) for method in methods]
    return _PAGE.format(rows="\n".join(rows), words="\n".join(words), advice=advice, sections="\n".join(sections))


def _section(method: Method, measured: str | None) -> str:
    source = f" Source: {method.source}." if method.source else ""
    leaves = ", ".join(method.leaves_site or ()) or "nothing"
    entries = {
        "Needs": _needs(method),
        "Use": method.use,
        "Leaves a site": leaves,
        "As published": method.published,
        "Inferred": method.inferred,
        "Left out": method.left_out,
        "Measured": measured,
    }
    lines = [f"- *{what}*: {text}." for what, text in entries.items() if text]
    return "\n".join([f"### `{method.name}`", "", f"**{method.title}**: {method.note}.{source}", "", *lines, ""])


def _needs(method: Method) -> str:
    files = [read_json(path) for path in variant_files(None, method.name)]
    splits = [content[key] for content in files if (key := "train#dataset#split") in content]
    own = LABELS[method.labels] if method.labels in ("masks", "weak") else "no labels from a site"
    return _PUBLIC.get(splits[-1] if splits else "public", _PUBLIC["public"]).format(own=own)


_PAGE = """# Methods

All values of `--variant`. To choose one, begin with [Which one for you](#which-one-for-you).

```bash
samfed federate samfed_skin --variant ditto --datalist list.json --data-root DATA --output-dir runs/ditto
samfed variants ditto        # prints its JSON
```

Each method is a JSON file in `samfed_monai/methods/`, with its code beside it. `make related-page` writes this page
from these files and from the records of finished runs. Only what a method declares can [leave a site](privacy.md). To
write one, see [a method of your own](extending.md#a-method-of-your-own).

| variant | what it is | exchange | labels | classes |
| --- | --- | --- | --- | --- |
{rows}

Two options change what the table says: with `exchange` `weights`, `heterogeneous`, `hssf` and `hssf_compat` exchange
weights instead of predictions; `personal` keeps part of a network at its site.

| column | word | means |
| --- | --- | --- |
{words}

With every method, sites also send their number of images, seconds and steps; after a failure, one line without paths.

{advice}## Dishonest sites: how many each rule tolerates

FedAvg, and every method above that averages, trusts each site. Four rules tolerate sites that send arbitrary updates,
even in collusion, up to the following numbers. They keep all updates of a round in memory; FedAvg keeps two models.

| sites | `coordinate_median` | `trimmed_mean` (a quarter) | `krum` | `norm_clipping` |
| --- | --- | --- | --- | --- |
| 2 | refused | refused | refused | steps of one length |
| 3 | 1 | 1 | refused | steps of one length |
| 4 | 1 | 1 | refused | steps of one length |
| 5, 6 | 2 | 2 | 1 | steps of one length |
| 7, 8 | 3 | 2 | 2 (`faulty` 2), else 1 | steps of one length |

- **Two sites**: the wrong one of two cannot be identified. Clipping limits the length of its update, and
  `job#update_guard#largest_share` its number of images; a wrong update of ordinary length is half of the model.
- **Four sites**, as in most federations of hospitals: median and trimmed mean tolerate one dishonest site, not two;
  Krum needs a fifth site.
- `norm_clipping` only stops scaled updates: flipped signs or labels at ordinary length keep their share of the mean.
- No rule excludes a backdoor that is within the differences between honest sites. The more honest sites differ, the
  more often one of them is left out.

## One by one

*As published*: what follows the source, where we did not have all of it. *Inferred*: what is not in the source or
differs from it: our reading or our choice. *Left out*: parts of the source that are missing here. *Measured*: test Dice
of short runs on polyps, and the difference to another method in the same runs ([all of them](results/related.md)).
[Method](method.md) and [Sites with models of their own](personalised.md) describe SAM-Fed, HSSF and SAM at the sites in
full.

The following is ours in all methods that do not name something else: networks start from the public labels; views and
losses of the bundle; AdamW, whose moments a site keeps from round to round, where most papers have SGD (a constant
factor of the whole loss has no effect under AdamW); all sites take part in each round and count by their images.

{sections}"""
