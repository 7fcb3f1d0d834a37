"""Share the frame, style and Jinja environment of all HTML pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

import jinja2
from rich import filesize

STYLE = r""":root { color-scheme: light; --paper: #fff; --ink: #1c2733; --muted: #5a6773; --rule: #d5dbe1; --blue: #1f6394; --red: #b3402a;
  --good: #1d5a2c; --good-wash: #e2f1e5; --note: #134a70; --note-wash: #e3eff6; --open: #8a4510; --open-wash: #fdf1e7; --bad-wash: #f9e4df; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --paper: #14191f; --ink: #e3e8ed; --muted: #a3aeb9; --rule: #3a444e; --blue: #7db8e0; --red: #f0917e;
    --good: #a5d6b0; --good-wash: #1c3323; --note: #b5d8ef; --note-wash: #193244; --open: #f0b98a; --open-wash: #3b2a1a; --bad-wash: #44221c; }
  .plot svg { border-radius: 4px; } /* figures stay as they print: dark ink on white */
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { border-bottom: 3px solid var(--ink); padding-bottom: 1rem; margin-bottom: 1.5rem; }
header p { margin: 0; color: var(--muted); max-width: 54rem; }
.kicker { font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; }
h1 { font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; margin: .2rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h2 + p { margin: 0 0 .5rem; color: var(--muted); max-width: 54rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
.status { display: inline-block; vertical-align: middle; font: 600 .8rem/1 inherit; font-size: .8rem; line-height: 1; font-weight: 600;
  padding: .35rem .6rem; border-radius: 1rem; background: var(--note-wash); color: var(--note); white-space: nowrap; }
.status.open { background: var(--open-wash); color: var(--open); }
.banner { border-left: 4px solid #c8711c; background: var(--open-wash); padding: .75rem 1rem; margin: 1rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.banner p { margin: 0 0 .25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .75rem; margin: 0; }
.cards > div { border: 1px solid var(--rule); border-top: 3px solid var(--blue); border-radius: 4px; padding: .75rem 1rem; break-inside: avoid; }
.cards > div.worst { border-top-color: var(--red); }
.cards dt { font-weight: 600; font-size: .9rem; }
.cards dd { margin: 0; }
.cards .value { font-size: 2rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.cards .unit { font-size: 1rem; font-weight: 400; color: var(--muted); }
.cards small { display: block; color: var(--muted); font-size: .85rem; line-height: 1.4; margin-top: .25rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem 2rem; align-items: start; }
figure { margin: .75rem 0; min-width: 0; break-inside: avoid; }
.plot { overflow-x: auto; }
.plot svg { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .9rem; max-width: 40rem; margin-top: .25rem; }
.scroll { overflow-x: auto; }
a { color: var(--blue); }
:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 600; border-bottom: 2px solid var(--rule); }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 6rem; }
td.n, th.n { text-align: right; white-space: nowrap; }
.bad { color: var(--red); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .5rem 1.5rem; margin: .75rem 0; }
.facts dt { color: var(--muted); font-size: .85rem; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.facts small { display: block; font-weight: 400; color: var(--muted); }
.settings { columns: 22rem 2; column-gap: 2rem; }
.settings section { break-inside: avoid; margin-bottom: 1rem; }
.settings h3 { margin-top: 0; }
.settings td, .settings th { overflow-wrap: anywhere; white-space: normal; font-weight: 400; }
.settings th { color: var(--muted); width: 50%; }
footer { margin-top: 2.5rem; padding-top: .9rem; border-top: 1px solid var(--rule); color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }
@media print {
  @page { margin: 14mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  :root { font-size: 12px; }
  body { padding: 0; max-width: none; font-size: 1rem; }
  h2 { margin-top: 1.25rem; }
  h2, h2 + p, h3, caption, thead { break-after: avoid; }
  tr, .pair { break-inside: avoid; }
  th, td { padding-top: .15rem; padding-bottom: .15rem; }
  .plot, .scroll { overflow: visible; }
  td.n, th.n { white-space: normal; }
  td { overflow-wrap: anywhere; }
  td.n { overflow-wrap: normal; }
  .plot svg { min-width: 0 !important; max-height: 170mm; }
  .cards { grid-template-columns: repeat(3, 1fr); }
  .cards .value { font-size: 1.6rem; }
  .pair { grid-template-columns: 1fr 1fr; }
  .settings { columns: 2; }
}
"""
"""What pages look like on a screen, light or dark as its owner likes it, and on paper."""

PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% block policy %}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
{% endblock %}
<title>{% block title %}{% endblock %}</title>
<style>
"""
    + STYLE
    + """{% block style %}{% endblock %}
</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""
)
"""Extended as "page": blocks `title`, `style` (adds to it), `body`, and `policy`, which forbids all loading."""


def page_environment(templates: Mapping[str, str] = MappingProxyType({})) -> jinja2.Environment:
    """Return the Jinja environment of all pages: text is escaped, an unknown name is an error, numbers have filters.

    Args:
        templates: templates by name, which may extend or include one another and "page".
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({"page": PAGE, **templates}),
    )
    environment.filters.update(number=number, millions=_millions, size=filesize.decimal, duration=_duration)
    return environment


def number(value: float | None, digits: int = 1) -> str:
    """Return a number formatted for people, or a dash if there is no number."""
    if value is None or math.isnan(value):
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")  # + 0.0 makes -0.0 a plain 0.0


def _millions(count: float) -> str:
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
