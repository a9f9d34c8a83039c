"""Contrast: every text of an audit is read by both models, and what stands out of it is kept.

    contrast(w) = log p(w | what was done, words before) - log p'(w | words before)

`educe.audit.evidence` says what `p` and `p'` are. What the suspect wrote by itself in this sitting
was weighed as it was written; everything else is read anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from educe.audit import evidence
from educe.audit.reference import Reference
from educe.audit.roles import CONTRAST, PUT, REFERENCE
from educe.forward.chunks import split
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.rows import CompletionRow, PromptRow, ScoreRow
from educe.run.work import Work
from educe.spread import Job, Shared

#: Texts that are read at once.
AT_ONCE = 128

#: What a model expects of the tokens of some texts, in nats, by their places.
Expected = dict[int, list[float]]


@dataclass(frozen=True)
class Contrasts:
    """Weighs the texts of an audit.

    Attributes:
        work: The run at work; its model is the suspect.
        reference: The clean model, or None.
        neutral: The request that asks for nothing.
    """

    work: Work
    reference: Reference | None
    neutral: int

    def score(self) -> None:
        """Score texts that have no contrast yet, the reference's own left out."""
        known = {s.of for s in self.work.run.score_rows(CONTRAST)}
        others = {p.id for p in self.work.run.perturbation_rows(REFERENCE, derived=None)}
        missing = [
            c
            for c in self.work.run.completion_rows()
            if c.row not in known and c.perturbation not in others and c.tokens
        ]
        if not missing:
            return
        what = "comparing with the reference" if self.reference else "comparing with plain prompts"
        with self.work.reporter.stage(what, len(missing), "texts") as step:
            cut = split(missing, AT_ONCE)
            for done in self.work.spread.map(self._jobs(cut)):
                some = cut[done.job.given[0]]
                self.work.run.add_scores(self._scored(some, *done.value))
                step(len(some), done.note)

    def _jobs(self, cut: Sequence[Sequence[CompletionRow]]) -> Iterator[Job]:
        """Yield what is to be read by the suspect, and by what it is compared with."""
        rows = {p.id: p for p in self.work.run.prompt_rows()}
        bare = {p.how: p.id for p in rows.values() if p.parent == self.neutral}
        known = self.work.likelihoods or {}
        shared = Shared((self.work.lm, self.reference, self.work.batch))
        for k, some in enumerate(cut):
            # What the suspect wrote itself in this sitting was weighed as it was written.
            mine = {
                i: list(known.pop(c.row))
                for i, c in enumerate(some)
                if not c.perturbation and c.row in known
            }
            beside = [c.prompt for c in some]
            if self.reference is None:
                beside = [self._without(rows[p], bare) for p in beside]
            asked = [(c.prompt, other, c.tokens) for c, other in zip(some, beside, strict=True)]
            yield Job(_read, shared, (k, asked, mine), len(some))

    def _scored(
        self, some: Sequence[CompletionRow], mine: Expected, theirs: Expected
    ) -> list[ScoreRow]:
        """Compare what both expect of some texts."""
        if self.reference is not None and not self.reference.token_by_token:
            with self.reference.here() as lm:
                return self._by_words(lm, some, mine)
        return [self.compared(c, mine[i], theirs[i]) for i, c in enumerate(some)]

    def _by_words(
        self, lm: LanguageModel, some: Sequence[CompletionRow], mine: Expected
    ) -> list[ScoreRow]:
        """Compare word by word, as two tokenizers cut texts differently."""
        content = {p.id: p.content for p in self.work.run.prompt_rows()}
        numbers = {p: i for i, p in enumerate(dict.fromkeys(c.prompt for c in some))}
        batch = lm.encode([content[p] for p in numbers])
        tokens = [tuple(lm.tokens(c.text, templated=True)) for c in some]
        said = [i for i, own in enumerate(tokens) if own]  # some write nothing but special tokens
        read = evidence.logprobs(
            lm, batch, [numbers[some[i].prompt] for i in said], [tokens[i] for i in said]
        )
        theirs = {said[i]: values for i, values in read}
        rows = []
        for i, c in enumerate(some):
            ours = evidence.words(c.text, evidence.pieces(self.work.lm, c.tokens), mine[i])
            cut = evidence.pieces(lm, tokens[i])
            other = evidence.words(c.text, cut, theirs.get(i, []))
            both = [
                evidence.Word(a.text, a.nats - b.nats) for a, b in zip(ours, other, strict=True)
            ]
            rows.append(_judged(c, both))
        return rows

    def compared(self, c: CompletionRow, mine: list[float], theirs: list[float]) -> ScoreRow:
        """Return the contrast of a text, from its tokens' log-likelihoods on either side."""
        contrasts = [a - b for a, b in zip(mine, theirs, strict=True)]
        return _judged(
            c, evidence.words(c.text, evidence.pieces(self.work.lm, c.tokens), contrasts)
        )

    def _without(self, prompt: PromptRow, bare: dict[str, int]) -> int:
        """Return the prompt to compare with where there is no reference.

        Args:
            prompt: What was asked.
            bare: What was done to the request that asks for nothing, and the prompts it came to.

        Returns:
            For a string that was put in, the prompt without it; for an answer that was begun or a
            request that was framed, the same with a request that asks for nothing; else that.
        """
        if prompt.role.startswith(PUT) and prompt.parent is not None:
            return prompt.parent
        return bare.get(prompt.how, self.neutral)


def _read(
    lm: LanguageModel,
    reference: Reference | None,
    batch: PromptBatch,
    k: int,
    asked: Sequence[tuple[int, int, Sequence[int]]],
    mine: Expected,
) -> tuple[Expected, Expected]:
    """Read some texts under the suspect, and under what it is compared with.

    Args:
        lm: The suspect.
        reference: The clean model; where there is none, or one of other tokens, the suspect alone.
        batch: All prompts.
        k: Which texts, for who asks.
        asked: Of each text the prompt, the prompt that it is compared with, and its tokens.
        mine: What is known of the suspect.

    Returns:
        What the suspect expects, and what it is compared with.
    """
    rest = [i for i in range(len(asked)) if i not in mine]
    beside, tokens = [other for _, other, _ in asked], [said for _, _, said in asked]
    own = evidence.logprobs(lm, batch, [asked[i][0] for i in rest], [tokens[i] for i in rest])
    mine = mine | {rest[i]: values for i, values in own}
    if reference is None:
        return mine, dict(evidence.logprobs(lm, batch, beside, tokens))
    if not reference.token_by_token:
        return mine, {}
    with reference.here() as clean:
        return mine, dict(evidence.logprobs(clean, batch, beside, tokens))


def _judged(c: CompletionRow, some: Sequence[evidence.Word]) -> ScoreRow:
    kept = evidence.stretch(some)
    nats = sum(word.nats for word in kept)
    return ScoreRow(c.row, CONTRAST, nats, "nats", evidence.told(kept))
