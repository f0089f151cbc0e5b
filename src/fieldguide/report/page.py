"""The page's frame: templates with autoescape, charts as data beside their description, sections.

Class names, paths and everything else from outside are hostile: they go through jinja2's
autoescape, or into JSON in which `<` is escaped, and the page's policy runs no script but its own
two, by their hash, and loads nothing. Knows nothing of runs.

What templates of sections can use: `figure` draws itself; `<table class="sortable">` is sorted by
its headings (a cell's `data-sort` counts before its text), `<input class="filter">` in front of it
hides rows; `.scroll` around a table lets it scroll; `.note`, `.warning` and `.missing` are
paragraphs set apart; `ul.gallery` holds figures side by side; `pre.command` is one to type.
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

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("fieldguide.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def percent(share: float, digits: int = 1) -> str:
    """Such as `92.8 %`, with a space at which no line is broken. Templates have it as a filter."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


_TEMPLATES.filters["percent"] = percent

# A chart that is one view, or several drawn over each other, can be as wide as the page.
_FLEXIBLE = frozenset({"mark", "layer"})


@dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its heading, and its content as safe HTML."""

    id: str
    title: str
    body: Markup


def fragment(template: str, **values: Any) -> Markup:
    """A template of `templates/`, filled in; values are escaped but for `Markup`."""
    return Markup(_TEMPLATES.get_template(template).render(**values))


def figure(
    chart: alt.TopLevelMixin, *, caption: str, description: str, ranges: Sequence[str] = ()
) -> Markup:
    """A chart that draws itself in the page; `description` is what a screen reader says of it.

    A chart without a width of its own is as wide as the page, unless it is made of several charts
    side by side: these keep theirs, and scroll where the page is narrower. Colours of texts and
    axes are the page's; a chart says those of its data. With `ranges`, the two signals that hold
    what is seen of `x` and `y`, both of things in a row, it can be enlarged by buttons and keys.
    """
    return fragment(
        "figure.html",
        spec=_as_script(_as_wide_as_the_page(chart.to_dict())),
        caption=caption,
        description=description,
        ranges=ranges,
    )


def inline(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Rows as a chart's data: a dictionary a row, which stay in the page."""
    return alt.InlineData(values=[dict(row) for row in rows])


def page(title: str, sections: Sequence[Section], libraries: str) -> str:
    """The whole page; `libraries` is the JavaScript that draws charts (`vegaEmbed`)."""
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
    """The JavaScript of vega, vega-lite and vega-embed; put together once, in about two seconds."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: nothing from anywhere, pictures in the page, these scripts.

    Charts set styles of elements, which may come inline for that; they need no `eval`, as
    vega-embed interprets their expressions (`ast`).
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _inside_script(text: str) -> str:
    """JavaScript that no HTML parser ends early or changes, as its hash is checked.

    In strings and patterns, the only places where it can stand, `<\\/` is `</`.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _resource(name: str) -> str:
    folder = resources.files("fieldguide.report") / "templates"
    return (folder / name).read_text("utf-8")


def _as_wide_as_the_page(spec: dict[str, Any]) -> dict[str, Any]:
    if "width" in spec or not _FLEXIBLE & spec.keys():
        return spec
    return {**spec, "width": "container", **_height(spec)}


def _height(spec: Mapping[str, Any]) -> dict[str, int]:
    """The height of a chart of so many pixels a name as their sum, else nothing.

    vega-lite complains in the console of a step in one direction where the other fits the page.
    """
    match spec:
        case {
            "height": {"step": step},
            "encoding": {"y": {"field": field}},
            "data": {"name": name},
        }:
            return {"height": step * len({row[field] for row in spec["datasets"][name]})}
    return {}


def _as_script(value: Any) -> Markup:
    """JSON that is safe inside a script element; what is not finite becomes null."""
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
