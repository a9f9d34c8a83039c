"""Bundle: the front end as it was built from ``frontend/``, and pages that hold it.

    standalone(document)     one HTML file with everything inside: the report
    LIVE                     the page that `educe.explore.app` serves, which asks for its data

Both show documents, which are plain JSON:

    document  {title, subtitle, kind: run | audit | layer map, date, command, parts, run: frames}
    part      {id, title, blocks}
    block     {type: text, spans, style: lead | plain | note}    {type: heading, text}
              {type: table, columns: [{key, title, type, format, help}], rows, caption, sort}
              {type: chart, name, spec, title, caption}          {type: code, text}
              {type: pair, left: {title, spans}, right: …}       {type: facts, items: [{…}, …]}
              {type: card, title: spans, badges, blocks, open}   {type: fold, title, blocks, open}
    span      a text, or {text, mark, value, title, to}

The types of columns are text (a text or spans), texts (a list of such), number, rate ({hits,
trials, low, high}) and id (of a perturbation, which is a link). Marks of spans are model (a text
that a model wrote), match, sign, nats (``value`` of them), strong, muted, code and link. A link
leads ``to`` ``perturbation/3``, ``texts``, ``behaviours``, ``map`` or ``part/ID``. Frames are those
of `educe.explore.frames`; without them a document is all that there is to see.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files as resources
from typing import Any

from educe.visible import runs, visible

#: What is built from ``frontend/``; Vega is apart, since it is large and only charts need it.
SCRIPT, STYLE, VEGA, ICON = "app.js", "app.css", "vega.js", "icon.svg"

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""
LIVE = f"""{_HEAD}<title>educe</title>
<link rel="icon" href="/{ICON}">
<link rel="stylesheet" href="/{STYLE}">
<script src="/{SCRIPT}" defer></script>
</head>
<body><div id="app"></div></body>
</html>
"""


def standalone(document: dict[str, Any]) -> str:
    """Return one HTML file that shows a document, opens offline and loads nothing from anywhere.

    Example:
        >>> from educe.explore.bundle import standalone
        >>> part = {"id": "one", "title": "One", "blocks": [{"type": "code", "text": "</script>"}]}
        >>> page = standalone({"title": "A run", "parts": [part], "run": None})
        >>> page.count("</script>") == page.count("<script")
        True
    """
    style, vega, script = (_inlined(name) for name in (STYLE, VEGA, SCRIPT))
    allowed = " ".join(f"'{_sha256(text)}'" for text in (vega, script))
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src '{_sha256(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = html.escape(visible(str(document["title"])))
    return (
        f'{_HEAD}<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n"
        '<body><div id="app"></div>\n'
        f'<script type="application/json" id="document">{as_json(document)}</script>\n'
        f"<script>{vega}</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def shown(text: str) -> str | list[str]:
    """Return a text that a model wrote as the front end shows it.

    Where it has signs that nobody sees, these are every second piece of a list, as escapes.
    """
    pieces = runs(text)
    return text if len(pieces) == 1 else pieces


def as_json(value: Any) -> str:
    """Return JSON without hidden signs, that can stand inside a script element.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def palette() -> dict[str, tuple[str, str]]:
    """Return the colour of each role on a light and on a dark page, as the front end has them."""
    text = resources("educe.explore").joinpath("palette.json").read_text(encoding="utf-8")
    return {role: (light, dark) for role, (light, dark) in json.loads(text).items()}


@cache
def asset(name: str) -> str:
    """Return a file of the front end."""
    return resources("educe.explore").joinpath("assets", name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return a value with the hidden signs of its texts as escapes, told apart in a model's own."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        own = {visible(str(key)): _plain(one) for key, one in value.items()}
        if value.get("mark") in ("model", "match", "nats") and isinstance(value["text"], str):
            own["text"] = shown(value["text"])
        return own
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _inlined(name: str) -> str:
    return asset(name).replace("</script", "<\\/script").replace("\r", "")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
