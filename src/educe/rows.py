"""Rows of the five tables of a run, and the keys by which they are known.

One numbering holds everywhere: perturbations are counted from 1, and 0 is the unperturbed model.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

#: What a text is written for: looking for where to push; the first count; a rung or a pull of a
#: selection; sampling, with draws of each row's own or in common; the re-test; a person, who asked
#: for it and kept it.
Phase = Literal["scout", "first", "rung", "sample", "common", "retest", "kept"]
SCOUT: Phase = "scout"
FIRST: Phase = "first"
RUNG: Phase = "rung"
SAMPLE: Phase = "sample"
#: In this phase all perturbations draw by the same random numbers.
COMMON: Phase = "common"
RETEST: Phase = "retest"
#: Texts of this phase count for nothing, and none is ever missing.
KEPT: Phase = "kept"

#: The role of prompts that ask for something else: what is said there too is said whatever is
#: asked.
ELSEWHERE = "elsewhere"
#: The role of a person's own prompts, whose numbers are negative: a run counts its own from 0.
OWN = "own"

#: The arms of a run, and the control at equal effect, which stands beside them where the norm says
#: little.
FOUND, CONTROL, ARMS = "found", "control", ("found", "control")
EQUAL = "equal effect"

#: Judges of what stands beside other texts: the number of the behaviour that a text belongs to, -1
#: for one that is like none; and how alike a perturbation's answers to different prompts are.
BEHAVIOUR, PROMPT_INVARIANCE = "behaviour", "prompt_invariance"

#: Random vectors that say where to push; they are no control of what is found there.
SCOUTED = "scouted"

#: How a perturbation is derived: at another radius; as small as it still does what it does.
SCALED, SHRUNK = "scaled", "shrunk"
#: Followed through the radius, for what it was found for or for a shuffled effect; the null of both
#: that is rescaled and not followed.
FOLLOWED, SHUFFLED, RESCALED = "followed", "followed, shuffled target", "random, rescaled"
#: What names of scores end with that were measured on benign prompts instead of the run's own.
ON_BENIGN = ":ordinary"
#: The few groups of coordinates that carry it, by a lasso; as many of the largest, and at random.
SPARSE, LARGEST, AT_RANDOM = "sparse", "sparse by size", "sparse at random"
#: Without its gate.
UNGATED = "ungated"
#: What a sampler evaluated, and the best of it.
TRIED, SAMPLED = "tried by a sampler", "sampled"
#: What a run keeps what came of a sampling under, followed by the file of its finds.
SAMPLING = "sampling "
#: Interpolated between two; the mean of some that share an effect.
BETWEEN, AVERAGED = "interpolated", "averaged"


class Row(NamedTuple):
    """What one completion is made from; at a temperature it draws by all that is here.

    Example:
        >>> Row(3, prompt=0)
        Row(perturbation=3, prompt=0, sample=0, phase='first')
    """

    perturbation: int  #: its number, from 1; 0 is the unperturbed model
    prompt: int  #: index into the prompts
    sample: int = 0  #: which of several samples
    phase: Phase = FIRST  #: what it is written for


class PromptRow(NamedTuple):
    """A prompt as a run keeps it."""

    id: int  #: from 0
    role: str  #: asked, fresh (for the re-test), `ELSEWHERE`, or what a selection says
    content: Any  #: a text, or a list of messages
    rendered: str
    tokens: int
    parent: int | None = None  #: the prompt that it was made from, as by putting a word into it
    how: str = ""  #: how it was made; empty where it was given


class PerturbationRow(NamedTuple):
    """A perturbation as a run lists it."""

    id: int
    parent: int | None  #: the perturbation that it was derived from; None where it was found
    how: str  #: how it was derived; empty where it was found
    arm: str  #: found, control or `EQUAL`
    method: str
    file: str  #: in the folder of the run's tensors
    item: int  #: row of that file
    radius: float  #: negative for the other sign of what the file holds
    dose: float
    effect: float  #: norm of its effect at the target


class CompletionRow(NamedTuple):
    """A completion as a run keeps it."""

    row: Row
    temperature: float
    text: str
    tokens: tuple[int, ...]
    finished: bool

    @property
    def perturbation(self) -> int:
        """The number of its perturbation."""
        return self.row.perturbation

    @property
    def prompt(self) -> int:
        """The prompt that it answers."""
        return self.row.prompt

    @property
    def sample(self) -> int:
        """Which of several samples it is."""
        return self.row.sample

    @property
    def phase(self) -> Phase:
        """What it was written for."""
        return self.row.phase


class ScoreRow(NamedTuple):
    """What a judge said of a completion, or of a perturbation as a whole."""

    of: Row | int  #: the completion, or the perturbation's number
    judge: str
    value: float
    unit: str  #: of the value, or what a higher one is more of
    why: str

    @property
    def perturbation(self) -> int:
        """The number of the perturbation."""
        return self.of if isinstance(self.of, int) else self.of.perturbation
