"""Templates of the report: one environment, one look, one file that loads nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections import Counter
from importlib.resources import files as resources
from typing import Any

import altair
import jinja2
import vl_convert
from markupsafe import Markup

from educe.comparison.account import dose
from educe.report import figures
from educe.report.markup import island, marked, plainly
from educe.visible import visible


def page(
    name: str,
    charts: dict[str, dict[str, Any]],
    *,
    scripts: tuple[str, ...] = ("charts.js",),
    islands: dict[str, Any] | None = None,
    pattern: re.Pattern[str] | None = None,
    **context: Any,
) -> str:
    """Return a whole page: a template that extends ``base.html``, with what it needs inside it.

    Args:
        name: The template.
        charts: Specifications, each drawn where an element ``chart-`` and its name stands.
        scripts: Ours, in this order; the page runs these and Vega, and nothing else.
        islands: Data that the scripts read, by name.
        pattern: What is looked for, and marked where it stands.
        context: What the template shows.
    """
    return (
        environment(pattern)
        .get_template(name)
        .render(
            islands={**(islands or {}), "charts-specs": charts, "palette": figures.PALETTE},
            charts=charts,
            palette=figures.PALETTE,
            style=Markup(_own("page.css")),
            script=Markup("".join(map(_own, scripts))),
            bundle=Markup(bundle()),
            **context,
        )
    )


def fragment(name: str, pattern: re.Pattern[str] | None = None, **context: Any) -> Markup:
    """Return a part of a page from its template."""
    return Markup(environment(pattern).get_template(name).render(**context))


def figure(name: str, title: str, text: str) -> Markup:
    """Return the place of a chart, with what it shows."""
    return Markup(
        '<figure class="chart" data-testid="chart-{0}"><figcaption><h5>{1}</h5><p>{2}</p>'
        '</figcaption><div class="canvas" id="chart-{0}" role="img" aria-label="{1}"></div>'
        "</figure>"
    ).format(*map(visible, (name, title, text)))


def plain(content: Any) -> str:
    """Return what a prompt asks, as text."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in content)


@functools.cache
def environment(pattern: re.Pattern[str] | None) -> jinja2.Environment:
    """Return the templates and the filters that they use."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("educe.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=plainly,
    )
    made.filters |= {
        "marked": lambda text: marked(text, pattern),
        "shown": marked,
        "plain": plain,
        "distinct": lambda texts: Counter(texts).most_common(),
        "island": island,
        "sha256": _sha256,
        "dose": dose,
        "percent": lambda x: f"{x:.0%}",
        "rate": lambda r: f"{r.share:.0%} ({r.low:.0%} to {r.high:.0%})" if r.trials else "",
        "mean": lambda m: f"{m[0]:.2f} ({m[1]:.2f} to {m[2]:.2f})",
        "p": lambda p: "below 0.0001" if p < 1e-4 else f"{p:.2g}",
        "interval": figures.interval,
        "shorten": figures.shorten,
    }
    return made


@functools.cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    version = ".".join(altair.SCHEMA_VERSION.split(".")[:2])
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return script.replace("</script", "<\\/script").replace("\r", "")


def _own(name: str) -> str:
    return resources("educe.report").joinpath(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
