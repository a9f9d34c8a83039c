"""Let the embedded model answer the questions of the bundled corpus and go on with its passages.

python -m studies.corpus [--quick]

Passages and questions were written for this project; what follows them is the model's own, so that
the corpus is large enough to describe its activations. Written to ``answers.jsonl`` beside them:
one string for each passage, then one for each question; the quick form prints those of a few.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import educe
from benchmarks import quick
from educe.activations.corpus import DATA, passages, questions

TEMPERATURE, PASSAGE_TOKENS, ANSWER_TOKENS, FEW = 0.8, 160, 240, 3


def written(lm: educe.LanguageModel, prompts: Sequence[str], *, chat: bool, most: int) -> list[str]:
    batch = lm.encode(prompts, chat=chat)
    rows = [educe.Row(0, j) for j in range(len(prompts))]
    texts: dict[int, str] = {}
    for done in educe.generate(
        lm, batch, rows, max_new_tokens=most, temperature=TEMPERATURE, rows_per_batch=64
    ):
        texts |= {c.row.prompt: c.text for c in done}
        print(f"{len(texts)} of {len(prompts)}", file=sys.stderr)
    return [texts[i] for i in range(len(prompts))]


def main(argv: Sequence[str] | None = None) -> None:
    asked = quick.parsed(argparse.ArgumentParser(description=__doc__), argv)
    lm, few = quick.model(quick=asked.quick), FEW if asked.quick else None
    answers = written(lm, passages()[:few], chat=False, most=PASSAGE_TOKENS)
    answers += written(lm, questions()[:few], chat=True, most=ANSWER_TOKENS)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if asked.quick:
        print(lines, end="")
    else:
        (DATA / "answers.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
