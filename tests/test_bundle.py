"""The front end as it is built: what stands in a report, and that it asks nobody."""

from __future__ import annotations

import json
import re

import pytest

from educe.explore.bundle import SCRIPT, STYLE, VEGA, as_json, asset, palette, shown, standalone


@pytest.mark.parametrize("name", [SCRIPT, STYLE, VEGA])
def test_the_bundle_names_no_host_that_it_could_ask(name: str) -> None:
    """Names of formats, which begin like addresses, and of pages on errors are never fetched."""
    formats = r"https?://(www\.w3\.org/|vega\.github\.io/|svelte\.dev/e/|github\.com/vega/)"
    named = set(re.findall(r"https?://[^\"'`\s)\\]+", asset(name)))
    assert {host for host in named if not re.match(formats, host)} == set()
    assert not re.search(r"@import|url\((?!['\"]?data:)", asset(name)) or name != STYLE
    assert "//# sourceMappingURL=http" not in asset(name)


def test_the_bundle_evaluates_no_text() -> None:
    assert not re.search(r"\beval\(|new Function\(", asset(SCRIPT))


def test_the_bundle_was_built_with_the_colours_of_the_charts() -> None:
    for light, dark in palette().values():
        assert light in asset(SCRIPT)
        assert dark in asset(SCRIPT)


def test_nothing_ends_a_script_but_its_end() -> None:
    text = "</script><script>alert(1)</script><!--"
    blocks = [{"type": "code", "text": text}]
    page = standalone({"title": text, "parts": [{"id": "a", "title": text, "blocks": blocks}]})
    assert page.count("</script") == page.count("<script") == 3
    island = page.split('id="document">')[1].split("</script>")[0]
    assert json.loads(island)["parts"][0]["blocks"] == blocks
    assert "&lt;/script&gt;" in page.split("<title>")[1].split("</title>")[0]


def test_hidden_signs_are_escapes_and_told_apart_in_a_model_s_text() -> None:
    span = {"text": "a\u202eb", "mark": "model"}
    made = json.loads(as_json({"spans": [span], "title": "a\u202eb", "literal": "\\u202e"}))
    assert made == {
        "spans": [{"text": ["a", "\\u202e", "b"], "mark": "model"}],
        "title": "a\\u202eb",
        "literal": "\\u202e",
    }
    assert shown("plain") == "plain"
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))
