"""Let the embedded model answer the questions of the bundled corpus and go on with its passages.

python -m benchmarks.corpus

Passages and questions were written for this project; what follows them is the model's own, so that
the corpus is large enough to describe its activations. Written to ``answers.jsonl`` beside them:
one string for each passage, then one for each question.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import educe
from educe.manifold.corpus import DATA, passages, questions

TEMPERATURE, PASSAGE_TOKENS, ANSWER_TOKENS = 0.8, 160, 240


def written(lm: educe.LanguageModel, prompts: Sequence[str], *, chat: bool, most: int) -> list[str]:
    batch = lm.encode(prompts, chat=chat)
    rows = educe.rows_of(1, len(prompts))
    rows = [row._replace(perturbation=-1) for row in rows]
    texts = {}
    for done in educe.generate(
        lm, batch, rows, max_new_tokens=most, temperature=TEMPERATURE, rows_per_batch=64
    ):
        texts |= {c.row.prompt: c.text for c in done}
        print(f"{len(texts)} of {len(prompts)}", file=sys.stderr)
    return [texts[i] for i in range(len(prompts))]


def main() -> None:
    lm = educe.load("embedded")
    answers = written(lm, passages(), chat=False, most=PASSAGE_TOKENS)
    answers += written(lm, questions(), chat=True, most=ANSWER_TOKENS)
    with (DATA / "answers.jsonl").open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
