"""The page's frame: templates with autoescape, charts as data beside their description, sections.

Class names, paths and everything else from outside are hostile: they go through jinja2's
autoescape, or into JSON in which `<` is escaped, and the page's policy runs no script but its own
two, by their hash, and loads nothing. Knows nothing of runs.

Templates of sections use: `figure`, which draws itself; the macro `table` of table.html, whose
sortable tables are sorted by their headings (a cell's `data-sort` counts before its text);
`<input class="filter">`, which hides rows of the next table; `.note`, `.warning` and `.missing` for
paragraphs set apart; `ul.gallery` for figures side by side; `pre.command` for a command to type;
the filters `percent` and `thousands`.
"""

import base64
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import altair as alt
import jinja2
from markupsafe import Markup

from fieldguide.words import percent

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("fieldguide.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["percent"] = percent
_TEMPLATES.filters["thousands"] = "{:,}".format

# A chart that is one view, or several drawn over each other, can be as wide as the page.
_FLEXIBLE = frozenset({"mark", "layer"})


@dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its heading, and its content as safe HTML."""

    id: str
    title: str
    body: Markup


def fragment(template: str, **values: Any) -> Markup:
    """Fill in a template of `templates/`; values are escaped but for `Markup`."""
    return Markup(_TEMPLATES.get_template(template).render(**values))


def figure(
    chart: alt.TopLevelMixin, *, caption: str, description: str, ranges: Sequence[str] = ()
) -> Markup:
    """Return a chart that draws itself; a screen reader reads its `description`.

    A chart without a width is as wide as the page, unless it is several side by side, which scroll.
    The page colours texts and axes. With `ranges`, the two signals that hold the visible ranges of
    `x` and `y`, buttons and keys enlarge the chart.
    """
    return fragment(
        "figure.html",
        spec=_as_script(_as_wide_as_the_page(chart.to_dict())),
        caption=caption,
        description=description,
        ranges=ranges,
    )


def inline(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Return rows as a chart's data: a dictionary a row, which stay in the page."""
    return alt.InlineData(values=[dict(row) for row in rows])


def looks(
    field: str,
    domain: Sequence[str],
    colors: Sequence[str] = (),
    shapes: Sequence[str] = (),
    **legend: Any,
) -> dict[str, Any]:
    """Return `color` and `shape` (by default the page's) by one field, in one legend on top."""
    shown = alt.Legend(**{"title": None, "orient": "top", "symbolOpacity": 1} | legend)

    def scale(values: Sequence[str]) -> alt.Scale:
        return alt.Scale(domain=domain, range=values or alt.Undefined)

    return {
        "color": alt.Color(field, scale=scale(colors), legend=shown),
        "shape": alt.Shape(field, scale=scale(shapes), legend=shown),
    }


def rounded(value: float) -> float:
    """Return the value in five digits, to keep the page small."""
    return float(f"{value:.5g}")


def page(title: str, sections: Sequence[Section], libraries: str) -> str:
    """Return the whole page; `libraries` is the JavaScript that draws charts (`vegaEmbed`)."""
    scripts = [_inside_script(text) for text in (libraries, _resource("page.js"))]
    return fragment(
        "page.html",
        title=title,
        sections=sections,
        style=Markup(_resource("style.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


@functools.cache
def chart_libraries() -> str:
    """Return the JavaScript of vega, vega-lite and vega-embed, bundled once in about 2 seconds."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy: these scripts, pictures in the page, nothing else.

    Charts set inline styles, but need no `eval`: vega-embed interprets expressions (`ast`).
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _inside_script(text: str) -> str:
    """Return JavaScript that no HTML parser ends early or changes, as its hash is checked.

    `<\\/` means `</` in strings and patterns, the only places where it can stand.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _resource(name: str) -> str:
    folder = resources.files("fieldguide.report") / "templates"
    return (folder / name).read_text("utf-8")


def _as_wide_as_the_page(spec: dict[str, Any]) -> dict[str, Any]:
    if "width" in spec or not _FLEXIBLE & spec.keys():
        return spec
    wide = {**spec, "width": "container"}
    # vega-lite warns in the console of a step in one direction if the other fits the page.
    match spec:
        case {
            "height": {"step": step},
            "encoding": {"y": {"field": field}},
            "data": {"name": name},
        }:
            names = {row[field] for row in spec["datasets"][name]}
            return {**wide, "height": step * len(names)}
    return wide


def _as_script(value: Any) -> Markup:
    """Return JSON that is safe inside a script element; infinite numbers and NaN become null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value
