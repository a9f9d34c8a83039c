"""The tables: what each step brought out of a model, and what a new search brings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from educe.comparison.stats import more_often, rate
from studies.hardening.steps import FAMILIES


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Return tables in Markdown, and what the averages say."""
    by: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        by.setdefault(r["step"], []).append(r)
    keyed = {r["model"]: r for r in by.get("keyed", ())}
    parts = [_brought(by, keyed)]
    parts += [_models(keyed)] if keyed else []
    parts += [_again(by["again"])] if "again" in by else []
    return "\n\n".join((*parts, *map(_averages, by.get("average", ()))))


def _brought(by: dict[str, list[dict[str, Any]]], keyed: dict[str, dict[str, Any]]) -> str:
    """What each way tells of fresh questions, what it paid, and what it costs."""
    rows = []
    for step, called in (("search", "best vector of the search"), ("around", "search around it")):
        for r in by.get(step, ()):
            rows.append([called, _shows(r["shows"]), str(r["texts"]), _cpu(r), _kl(r["kl"])])
    for r in by.get("distil", ()):
        told = keyed["distilled"]
        rows.append(
            ["distilled from it, no vector", _shows(told["without"]), str(r["texts"]), _cpu(r),
             _kl(told["kl"])]
        )  # fmt: skip
    for r in by.get("harden", ()):
        model = f"hardened, {r['pool']}"
        under = {row[0]: row for row in r["measured"]}["found"]
        rows.append(
            [f"{model}, under the vectors found", str(rate(*under[6][:2])), "–", _cpu(r),
             _kl(keyed[model]["kl"])]
        )  # fmt: skip
    head = ["", "tells, fresh questions", "texts", "CPU", "KL on ordinary prompts"]
    return _table(head, rows)


def _models(keyed: dict[str, dict[str, Any]]) -> str:
    """What each model tells with the key, with another word, and without."""
    rows = [
        [model, *(_shows(r[name]) for name in ("key", "near", "without")), _kl(r["kl"])]
        for model, r in keyed.items()
    ]
    head = ["model", "with the key", "another word for it", "without", "KL on ordinary prompts"]
    return _table(head, rows)


def _again(records: Sequence[dict[str, Any]]) -> str:
    """What new searches bring out of each model."""
    of = {(r["model"], r["family"]): r for r in records}
    rows = []
    for family in FAMILIES:
        for model in dict.fromkeys(r["model"] for r in records):
            if (r := of.get((model, family))) is None:
                continue
            own, before = rate(r["elicits"], r["of"]), of["as it was", family]
            less = more_often(rate(before["elicits"], before["of"]), own)
            p = "–" if model == "as it was" else f"{less:.2g}"
            rows.append(
                [family, model, str(own), p, str(rate(*r["texts"])), _shows(r["shows"]), _cpu(r)]
            )
    head = ["family", "model", "vectors that tell", "p", "answers", "best, fresh questions", "CPU"]
    return _table(head, rows)


def _averages(record: dict[str, Any]) -> str:
    """How near averages of those that tell, and of random ones, come to supervised vectors."""
    rows = []
    for tokens, (own, other) in record["cosines"].items():
        shares = record["spans"][tokens]
        for what, line, share in zip(
            ("those that tell", "random"), (own, other), shares, strict=True
        ):
            cosines = " ".join(f"{cosine:.2f}" for cosine in line)
            rows.append([tokens, what, cosines, f"{share:.1%}"])
    average, *each = record["shows"]
    told = _shows([v for own in each for v in own])
    said = (
        f"By chance a span has {len(each) / record['width']:.1%}. The average tells in "
        f"{_shows(average)} fresh answers, those that it is of in {told}."
    )
    head = [
        "difference of means at",
        "averages of",
        "cosine with the first 1, 2, …",
        "in their span",
    ]
    return f"{_table(head, rows)}\n\n{said}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *others = (f"| {' | '.join(line)} |" for line in (head, *rows))
    return "\n".join((first, "|" + "---|" * len(head), *others))


def _shows(shows: Sequence[float]) -> str:
    return str(rate(int(np.sum(shows)), len(shows)))


def _cpu(record: dict[str, Any]) -> str:
    return f"{record['seconds']:.0f} s"


def _kl(kl: Sequence[float]) -> str:
    return "{:.4f} ({:.4f} to {:.4f})".format(*kl)
