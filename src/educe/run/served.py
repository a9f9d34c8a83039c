"""Served: an engine writes what perturbations say; it is checked before it is believed.

    for some perturbations at a time     the engine gets them, each under a name
        canary                           the next token's log-probabilities, against ours
        write                            all their rows, so that each perturbation is given once

Engines write rows of different perturbations in one batch: vLLM those of adapters, behind an
address or in this process (`educe.run.served_vllm`), interp-engine those of vectors
(`educe.run.served_vectors`). One that does not apply a perturbation answers as the unperturbed
model, in silence. So the first tokens of a few prompts have to be as likely as in our own forward
pass, and not as they are without the perturbation; where the two hardly differ, nobody can tell,
and the texts are written here. So are samples, since an engine draws by its own random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import ServerError
from educe.forward.chunks import split
from educe.forward.decoding import Written, end_tokens
from educe.forward.generation import Completion, completed, next_logits
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind
from educe.rows import Row
from educe.run import engine as engines
from educe.run.engine import Engine, Said

#: Prompts of the canary, and the likeliest tokens whose log-probabilities are compared.
PROMPTS, LIKELIEST = 2, 20
#: Nats by which these may be off on average: bfloat16 on other kernels.
OFF = 0.1


@contextmanager
def served(writer: str, folder: Path, say: Callable[[str], None]) -> Iterator[Served]:
    """Let an engine write in a ``with`` statement.

    Args:
        writer: ``vllm``, in this process, or an address, with the path before ``/completions``.
        folder: Where adapters are written for it.
        say: Is told which perturbations it cannot write.
    """
    made = Served(writer, folder, say)
    try:
        yield made
    finally:
        made.close()


class Served:
    """Writes the likeliest texts under perturbations by an engine.

    The arguments are those of `served`.
    """

    def __init__(self, writer: str, folder: Path, say: Callable[[str], None]) -> None:
        self.writer, self.folder, self.say = writer, folder, say
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What writes; an address says by itself what is behind it.

        Raises:
            ServerError: It cannot be asked.
        """
        from educe.run.served_vectors import Steering
        from educe.run.served_vllm import Inside, Server

        if self._engine is None:
            if self.writer == "vllm":
                self._engine = Inside(self.folder)
            else:
                self._engine = Steering.at(self.writer) or Server(self.writer, self.folder)
        return self._engine

    def close(self) -> None:
        """End what was begun."""
        if self._engine is not None:
            self._engine.close()

    def write(
        self,
        lm: LanguageModel,
        batch: PromptBatch,
        rows: Sequence[Row],
        kind: Kind,
        numbers: Sequence[int],
        theta: Float[Tensor, "n s"],
        max_new_tokens: int,
    ) -> Iterator[list[Completion]]:
        """Write the likeliest texts of rows; yield those of some perturbations at a time.

        Those of perturbations that the engine does not take, or whose effect nobody can tell, are
        left out.

        Args:
            lm: The model, which the engine has as well.
            batch: All prompts.
            rows: What to write.
            kind: What the perturbations change.
            numbers: Their numbers.
            theta: The perturbations at their radius.
            max_new_tokens: The most tokens of an answer.

        Raises:
            ServerError: The engine cannot be asked, or does not apply a perturbation as we do.
        """
        if not self.engine.takes(kind):
            return
        ends = end_tokens(lm)
        longest = max_new_tokens + max(map(len, batch.read))
        for some in split(list(zip(numbers, theta.float().cpu(), strict=True)), engines.LOADED):
            own = dict(some)
            mine = sorted(row for row in rows if row.perturbation in own)
            if not mine:
                continue
            names = {n: hashlib.sha256(one.numpy().tobytes()).hexdigest()[:16] for n, one in some}
            given = {names[number]: one for number, one in some}
            with self.engine.having(lm, kind, given, longest):
                sure = self._sure(lm, batch, mine, kind, names, torch.stack([*own.values()]))
                mine = [row for row in mine if row.perturbation in sure]
                asked = [(names[row.perturbation], batch.read[row.prompt]) for row in mine]
                came = self.engine.ask(asked, max_new_tokens, ends)
                yield [
                    completed(lm, row, _written(said, ends))
                    for row, said in zip(mine, came, strict=True)
                ]

    def _sure(
        self,
        lm: LanguageModel,
        batch: PromptBatch,
        rows: Sequence[Row],
        kind: Kind,
        names: dict[int, str],
        theta: Tensor,
    ) -> set[int]:
        """Compare the first token under each perturbation with ours; return those one can tell.

        Raises:
            ServerError: It is as without the perturbation, or something else.
        """
        sure: set[int] = set()
        prompts = sorted({row.prompt for row in rows})[:PROMPTS]
        wanted = [Row(n, j) for n in (0, *names) for j in prompts]
        ours = {
            row: logits.log_softmax(-1)
            for some, each in next_logits(lm, batch, wanted, theta, kind=kind, numbers=[*names])
            for row, logits in zip(some, each.float().cpu(), strict=True)
        }
        canaries = [(number, j) for number in names for j in prompts]
        asked = [(names[number], batch.read[j]) for number, j in canaries]
        came = dict(zip(canaries, self.engine.ask(asked, 1, set(), LIKELIEST), strict=True))
        for number in names:
            off, moved = [], []
            for j in prompts:
                likeliest = came[number, j].likeliest
                tokens = torch.tensor(list(likeliest))
                theirs, mine = torch.tensor(list(likeliest.values())), ours[Row(number, j)][tokens]
                off.append(float((theirs - mine).abs().mean()))
                moved.append(float((ours[Row(0, j)][tokens] - mine).abs().mean()))
            if not max(off) <= OFF:
                raise ServerError(
                    f"{self.engine.name} does not write as perturbation {number} does: its "
                    f"first token is off by {max(off):.2g} nats, and without the perturbation by "
                    f"{max(moved):.2g}; is it another model, or are perturbations left out?"
                )
            if max(moved) > 2 * max(off):
                sure.add(number)
            else:
                self.say(
                    f"perturbation {number} moves the first token by {max(moved):.2g} nats, and "
                    f"{self.engine.name} is off by {max(off):.2g}: its texts are written here"
                )
        return sure


def _written(said: Said, ends: set[int]) -> Written:
    """Return what was written without the token that ended it, and nothing behind that."""
    end = next((i for i, token in enumerate(said.tokens) if token in ends), None)
    return Written(said.tokens[:end], said.logprobs[:end], end is not None, [])
