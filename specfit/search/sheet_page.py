"""The acceptance sheet as one page of HTML that needs nothing else: no script, no style and no picture from outside."""

from __future__ import annotations

__all__ = ["page"]

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { font-weight: 700; padding: .5rem .75rem; border-left: .4rem solid; }
.passed { color: #00563f; } .failed { color: #a30000; } .told { color: #444; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; padding-bottom: .4rem; color: #444; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem .4rem 0; border-bottom: 1px solid #ccc; }
thead th { border-bottom: 2px solid #1a1a1a; }
tbody th { font-weight: 600; }
td.status { font-weight: 700; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: #444; display: block; }
figure { margin: 1rem 0; break-inside: avoid; } img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; }
@media (max-width: 40rem) {
  thead { position: absolute; left: -999rem; }
  table, tbody, tr, th, td { display: block; } tr { border-bottom: 1px solid #ccc; padding: .5rem 0; }
  tbody th, td { border: 0; padding: .1rem 0; } td[data-label]::before { content: attr(data-label) ": "; color: #444; }
}
@media print { body { font-size: 10pt; padding: 0; max-width: none; } tr { break-inside: avoid; } }
"""

# A word and a sign beside the colour.
STATUS = {True: ("passed", "✓ pass"), False: ("failed", "✗ FAIL"), None: ("told", "told")}
CAPTIONS = {
    "fit": "The data, their fitted background and the significance of each bin.",
    "spurious_signal": "Mean signal fitted to pseudo-data without one, in standard errors of the fit; the bands are "
    "±0.5 and ±0.2.",
    "linearity": "Mean fitted against injected yield in units of the error with the background known, and their "
    "difference in standard errors of the fit.",
    "pulls": "Fitted less injected yield over its standard error in every pseudo-experiment, with a normal "
    "distribution of width 1.",
    "p_values": "p-values of the fits and global p-values of the largest excess in pseudo-data, with what is expected "
    "if both are right; the line is the data.",
    "background": "Mean fitted background less its truth, in statistical errors of the data.",
}


def page(sheet: Mapping[str, Any], pictures: Mapping[str, bytes], *, title: str = "") -> str:
    """Writes the page.

    Args:
        sheet: From `ValidationSheet.to_dict`.
        pictures: PNG files, by name.
        title: What was validated.
    """
    name = escape(title or "a spectrum")
    truths = "".join(f"<li>{escape(study['name'])}</li>" for study in sheet["studies"])
    rows = "".join(_row(one) for one in sheet["criteria"])
    figures = "".join(_figure(name, data) for name, data in pictures.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Acceptance sheet: {name}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Acceptance sheet of the background of {name}</h1>
<p>{_facts(sheet)}.</p>
{_verdict(sheet)}
<table>
<caption>Every criterion, at its worst. What is told and not asked has no verdict.</caption>
<thead><tr><th scope="col">Verdict</th><th scope="col">Criterion</th><th scope="col">Value</th>
<th scope="col">Asked</th><th scope="col">Where, and what it means</th></tr></thead>
<tbody>
{rows}</tbody>
</table>
<h2>Pseudo-data were drawn from</h2>
<ul>{truths}</ul>
<h2>Pictures</h2>
{figures}</main>
</body>
</html>
"""


def _facts(sheet: Mapping[str, Any]) -> str:
    about = sheet["spectrum"]
    gaps = "".join(f", without {low:g} to {high:g}" for low, high in about["gaps"])
    return (
        f"{about['events']:.6g} {'weighted events' if about['weighted'] else 'events'} in {about['bins']} bins from "
        f"{about['low']:g} to {about['high']:g}{gaps}; {sheet['pseudo_experiments']} pseudo-experiments at these "
        f"statistics for each background and each signal on it"
    )


def _verdict(sheet: Mapping[str, Any]) -> str:
    asked = [one["passed"] for one in sheet["criteria"] if one["passed"] is not None]
    kind, word = ("passed", "✓ Passed") if sheet["passed"] else ("failed", "✗ Not passed")
    return f'<p class="verdict {kind}">{word}: {sum(asked)} of {len(asked)} criteria met</p>'


def _row(one: Mapping[str, Any]) -> str:
    kind, word = STATUS[one["passed"]]
    value = "-" if one["value"] is None else f"{one['value']:.3g}"
    return (
        f'<tr><td class="status {kind}">{word}</td>'
        f'<th scope="row">{escape(one["name"])}<small>{escape(one["truth"])}</small></th>'
        f'<td class="number" data-label="Value">{value}</td>'
        f'<td data-label="Asked">{escape(one["threshold"])}<small>{escape(one["source"])}</small></td>'
        f"<td>{escape(one['comment'])}</td></tr>\n"
    )


def _figure(name: str, data: bytes) -> str:
    caption, content = escape(CAPTIONS[name]), base64.b64encode(data).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{content}"><figcaption>{caption}</figcaption>'
        "</figure>\n"
    )
