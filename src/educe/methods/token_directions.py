"""Token directions: those of the vocabulary's own words that change the target most.

    max over words w of  ‖Δ(c R v_w)‖,       v_w = normalise( h(w) - mean over words of h )

`h(w)` is the stream leaving the source at a word that stands in a prompt for one of its tokens. A
backdoor waits for something that can be written, and among all directions of a norm those that a
word has are rare: a search over the sphere climbs to others, a draw from it never meets them. So
every word is tried at that token of the prompts, where it is cheap and harms little; the best are
then perturbations like any other, at the positions of the slice.

No published method; the idea of reading a backdoor's trigger off what single tokens do is that of
trigger inversion, here for directions in the stream, without a target text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from educe.errors import MethodError
from educe.forward.generation import Prefix
from educe.forward.slice import Slice
from educe.methods.state import Progress, State, directed
from educe.model.language import LanguageModel
from educe.perturbation import positions
from educe.perturbation.kinds import Vectors
from educe.whole import Above, AtLeast

#: Words over which the mean is taken: of the whole vocabulary, however few of them are tried.
AVERAGED = 512


@dataclass(frozen=True)
class TokensConfig:
    """Settings of the trial of token directions.

    Attributes:
        words: How many words of the vocabulary are tried, by lot; 0 for all.
        screen: Positions at which they are tried, and the first of which they stand at to be read:
            one token of the question, its last by default (see `educe.perturbation.positions`).
        louder: Norm at which they are tried, as a multiple of the radius: one token has to do what
            all of them will.
        steps: In how many parts; it makes no difference to what is found.

    Example:
        >>> TokensConfig(words=4000).screen  # tried at the last token of the question
        'asked:1'
    """

    words: Annotated[int, AtLeast(0)] = 0
    screen: str = "asked:1"
    louder: Annotated[float, Above(0)] = 2.0
    steps: Annotated[int, AtLeast(1)] = 64

    def __post_init__(self) -> None:
        positions.check(self.screen)


def start(part: Slice, n: int, radius: float, config: TokensConfig, draw: torch.Generator) -> State:
    """Put the words of the vocabulary into an order."""
    known = vocabulary(part.lm)
    known = known[torch.randperm(len(known), generator=draw)]
    words = known[: config.words] if config.words else known
    if n > len(words):
        raise MethodError(
            f"tokens: {n} perturbations of {len(words)} words; ask for fewer, or more"
        )
    mean = streams(part, known[:AVERAGED], config.screen).mean(0)
    return State(
        words=words,
        wanted=torch.tensor(n),
        mean=mean,
        directions=mean.new_zeros(0, len(mean)),
        size=mean.new_zeros(0),
        token=words[:0],
        curve=mean.new_zeros(0, 1),
    )


def step(part: Slice, radius: float, config: TokensConfig, state: State) -> tuple[State, Progress]:
    """Try some more words, and keep the best so far."""
    words, n, done = state["words"], int(state["wanted"]), len(state["curve"])
    each = _each(words, config)
    now = words[done * each : (done + 1) * each]
    if not len(now):  # a state that was saved after the last step
        return state, Progress(done=True)
    apart = streams(part, now, config.screen) - state["mean"]
    v = apart / apart.norm(dim=1, keepdim=True)
    screen = part.on(Vectors(part.source, part.width, config.screen))
    size = screen.effect(config.louder * radius * v).norm(dim=1)
    v, size = torch.cat([state["directions"], v]), torch.cat([state["size"], size])
    best = size.argsort(descending=True, stable=True)[:n]
    new = State(
        state
        | {
            "directions": v[best],
            "size": size[best],
            "token": torch.cat([state["token"], now])[best.to(now.device)],
            "curve": torch.cat([state["curve"], size[best].mean()[None, None]]),
        }
    )
    return new, Progress((done + 1) * each >= len(words), float(size[best].mean()))


def _each(words: Tensor, config: TokensConfig) -> int:
    return -(-len(words) // config.steps)


def finish(part: Slice, radius: float, config: TokensConfig, state: State) -> State:
    """Measure what the best do at the positions of the slice.

    Scores: ``token``, the word's number in the vocabulary; ``screened``, its effect where it was
    tried; ``effect``, what it does at the slice's own positions.
    """
    v = state["directions"]
    effect = part.effect(radius * v)
    u, size = directed(effect)
    return State(
        {
            "directions": v,
            "outputs": u,
            "score.token": state["token"],
            "score.screened": state["size"],
            "score.effect": size,
        }
    )


def vocabulary(lm: LanguageModel) -> Int[Tensor, "w"]:
    """Return the tokens that are a word: a space and letters.

    Raises:
        MethodError: The tokenizer marks no spaces, or there are none to tell apart.
    """
    tokens = lm.tokenizer.get_vocab() if lm.tokenizer is not None else {}
    # How tokenizers of bytes and of pieces write a space.
    found = sorted(
        number for text, number in tokens.items() if text[:1] in "Ġ▁" and text[1:].isalpha()
    )
    if len(found) < 2:  # one alone is its own mean, and has no direction
        raise MethodError(
            f"tokens: the vocabulary of {lm.name} has {len(found) or 'no'} words that begin "
            "with a space, and it takes two to tell them apart"
        )
    return torch.tensor(found)


@torch.no_grad()
def streams(part: Slice, words: Int[Tensor, "w"], screen: str) -> Float[Tensor, "w d"]:
    """Return the stream leaving the source at words that stand for a token of the first prompt.

    What comes before is run once.
    """
    lm, batch, source = part.lm, part.batch, part.source
    kept = batch.mask[0].bool()
    at = int(batch.at(screen)[0][kept].int().argmax())
    if not at:
        raise MethodError(
            f"tokens: screen {screen!r} is no token after the prompt's first: take one"
        )
    before = Prefix(lm, lm.pad([batch.ids[0][kept][:at].tolist()]), [0], source)
    cache = DynamicCache(config=lm.unwrapped.config)
    cache.layers[: source + 1] = before.lower(torch.zeros(len(words), dtype=torch.long))
    ids = words[:, None].to(lm.device)

    with lm.watching([source]) as seen, lm.ending(source):
        lm.forward(ids, ids.new_ones(len(ids), at + 1), cache=cache)
    return seen[source][:, -1].to(part.device, part.work_dtype)
