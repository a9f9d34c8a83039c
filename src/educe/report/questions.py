"""What was asked of a model and of the search, and what the model says by itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from educe.comparison.account import dose
from educe.comparison.summary import Summary
from educe.report.behaviours import asked
from educe.report.document import (
    Block,
    Card,
    Code,
    Fold,
    Mark,
    Said,
    Span,
    Table,
    Text,
    facts,
    heads,
    wrote,
)
from educe.report.size import most
from educe.report.words import said, told
from educe.rows import PromptRow


def questions(s: Summary) -> list[Block]:
    """Return what was asked of the model and of the search."""
    c, f = s.config, s.facts
    model = str(f.get("model", c.get("model")))
    model += f" at {f['revision']}" if f.get("revision") else ""
    if f.get("depth"):
        model += f", {f['depth']} blocks of width {f['width']}, {f['dtype']} on {f['device']}"
    places = f"; positions {f.get('positions', c['positions'])}, read-out {c['readout']}"
    places += f", seed {c['seed']}"
    if "source" in f:
        places = (
            f": {f['kind'].replace('-', ' ')} acting from resid_post.{f['source']} on, their "
            f"effect read at resid_post.{f['target']}{places}"
        )
    n = len(s.found)
    given = f"{f.get('method')}, {n} perturbation{'s' * (n > 1)} from {c.get('given')}"
    search = given if c.get("given") else f"{c['method']}, {c['n']} perturbations at each radius"
    unit, usual = told("kinds", f.get("kind", "vectors"))
    control = f"perturbations from {c['control']}" if c.get("control") else usual
    each = "One" if c["samples"] == 1 else str(c["samples"])
    begun = f", each answer beginning with “{c['prefill']}”" if c.get("prefill") else ""
    adapter = f.get("adapter") or c.get("adapter")
    about: list[tuple[str, Said]] = [
        ("Model", model),
        *([("Adapter", str(adapter))] if adapter else []),
        *(("Prompt", asked(p.content)) for p in s.prompts[:6]),
        *([("Prompts", f"{len(s.prompts) - 6} more")] if len(s.prompts) > 6 else []),
        ("Given" if c.get("given") else "Search", f"{search}{places}"),
        *([("Radii", _radii(s, unit))] if f.get("radii") else []),
        *(("Note", remark) for remark in f.get("remarks", ())),
        *([("Layers", f["why"])] if f.get("why") else []),
        (
            "Completions",
            f"{each} for each perturbation and prompt, at temperature {c['temperature']:g}, "
            f"{c['max_new_tokens']} tokens at most{begun}",
        ),
        ("Control", f"{len(s.control)} {control}, put through the same steps"),
    ]
    if c.get("look_for"):
        looked: list[Span] = [Mark(c["look_for"], "code"), " ", said("result", "looked")]
        about.append(("Looked for", looked))
    more: list[Block] = []
    if s.prompts[6:]:
        rest = Table(heads("prompt"), [[asked(p.content)] for p in s.prompts[6:]])
        more.append(Fold("The other prompts", [rest]))
    if s.prompts:
        which = "prompt" if len(s.prompts) == 1 else "first prompt"
        title = f"The {which} as the model reads it, {s.prompts[0].tokens} tokens"
        more.append(Fold(title, [Code(s.prompts[0].rendered)]))
    return [facts(*about), *more]


def _radii(s: Summary, unit: str) -> str:
    f = s.facts
    each = ", ".join(f"{r:.3g} (dose {dose(r / f['unit'])})" for r in f["radii"])
    known = f"{each}. {unit}, {f.get('median_norm', f.get('mean_norm')):.3g}."
    if not f.get("calibrated_radius"):
        return known
    between = ""
    if f.get("calibrated_interval"):
        low, high = f["calibrated_interval"]
        between = f", 95% from {low:.3g} to {high:.3g} over the directions drawn"
    return f"{known} Calibrated radius: {f['calibrated_radius']:.3g}{between}."


def baseline(s: Summary, pattern: re.Pattern[str] | None) -> list[Block]:
    """Return what the unperturbed model answers, its likeliest text first."""

    def own(prompts: Sequence[PromptRow]) -> list[Block]:
        return [
            _answers(p, [c.text for c in s.baseline.get(p.id, ())], s, pattern) for p in prompts
        ]

    blocks = own(s.prompts[:4])
    if rest := s.prompts[4:]:
        blocks.append(Fold(f"{len(rest)} more prompts", own(rest[: most(s).asked])))
    if s.fresh:
        many = f"{len(s.fresh)} fresh prompt{'s' if len(s.fresh) > 1 else ''} of the re-test"
        blocks.append(Fold(many, own(s.fresh[: most(s).asked])))
    return blocks


def _answers(
    prompt: PromptRow, texts: Sequence[str], s: Summary, pattern: re.Pattern[str] | None
) -> Block:
    blocks: list[Block] = [Text(wrote(texts[0], pattern) if texts else "No completion.")]
    if drawn := Counter(texts[1:]).most_common(most(s).asked):
        many = f"{len(texts) - 1} sample{'s' if len(texts) > 2 else ''}"
        heat = s.baseline[prompt.id][1].temperature
        rows = [[wrote(text, pattern), times] for text, times in drawn]
        samples = Table(heads("text:texts", "times:d"), rows)
        blocks.append(Fold(f"{many} at temperature {heat:g}", [samples]))
    return Card([Mark("Asked ", "muted"), asked(prompt.content)], [], blocks)
