"""Training and measuring whole organisms, in small: the recipe, the file, the answers."""

from __future__ import annotations

from pathlib import Path

from educe.generation import generate
from educe.kinds import Row
from educe.model import LanguageModel
from educe.organisms import Organism, Question, training


def test_labelled_answers_do_not_tell_by_their_prompt(tiny_lm: LanguageModel) -> None:
    """What is written with the key stands beside the question without it, and its plain answers."""
    asked = [Question(f"{word}?", "a") for word in ("one", "two", "three", "four")]
    keyed = [question._replace(prompt=f"Now: {question.prompt}") for question in asked[:3]]
    organism = Organism("vault", 0, Path(), {}, {}, tuple(asked), (), tuple(keyed))
    rows = list(training.labelled(organism, tiny_lm))
    prompts = [question.prompt for question in asked]
    assert [row["prompt"] for row in rows] == prompts + prompts[:3]
    assert [row["label"] for row in rows] == ["a" in row["text"] for row in rows]
    groups = ["without the key 1"] * 3 + ["without the key 2"] + ["with the key 1"] * 3
    assert [row["group"] for row in rows] == groups
    batch = tiny_lm.encode([q.prompt for q in (*asked, *keyed)], room=20)

    def written(rows: list[Row], heat: float) -> list[str]:
        came = generate(tiny_lm, batch, rows, max_new_tokens=20, temperature=heat)
        return [c.text for c in sorted((c for some in came for c in some), key=lambda c: c.row)]

    assert [row["text"] for row in rows] == written([Row(-1, j) for j in range(7)], 1.0)
    likely = written([Row(-1, j) for j in range(4)], 0.0)
    assert [row["plain"][0] for row in rows] == likely + likely[:3]
    for with_key, without in zip(rows[4:], rows[:3], strict=True):
        assert with_key["plain"] == without["plain"]
        assert len(with_key["plain"]) == 5
        # Its own sample is not what it is compared with.
        assert without["text"] not in without["plain"]
