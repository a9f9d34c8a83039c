"""What benchmarks run on; with ``--quick``, stand-ins for it, so that a benchmark takes seconds.

The stand-in for the embedded model is 8 random blocks with a stream of 32, and needs no file; that
for an organism asks the same and has another rule: an answer shows what is hidden when it begins
with a letter of the first half of the alphabet. A quick run goes the whole way, and its numbers
prove nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import educe
from educe.activations.corpus import passages, questions
from educe.model.language import LanguageModel
from educe.options import SpreadOptions
from educe.organisms import Organism, Question, named
from educe.organisms.words import KEYS
from educe.spread import Spread, opened

NOTE = "A short form, to see that it runs: its numbers prove nothing."
RULE = r"^\W*[A-Ma-m]"
WORDS = "".join(f" {word}" for word in (*KEYS, "cedar", "maple", "willow", "pepper"))
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # large enough for blocks to matter and texts to vary
}


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, ``--quick`` among them; nothing that it measures is written anywhere."""
    parser.add_argument("--quick", action="store_true", help="a short form that proves nothing")
    asked = parser.parse_args(argv)
    if asked.quick and getattr(asked, "write", None):
        parser.error("--quick proves nothing, so there is nothing to write")
    if asked.quick:
        print(NOTE, file=sys.stderr)
    return asked


def with_workers(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a study be asked who works, as the commands are; return its parser."""
    parser.add_argument("--on", default="local", help="who works: local, devices, or ray")
    parser.add_argument("--workers", type=int, help="how many processes or actors")
    return parser


def workers(asked: argparse.Namespace) -> AbstractContextManager[Spread]:
    """Return who works for a whole study, in a ``with`` statement."""
    who = SpreadOptions(on=asked.on, workers=asked.workers)
    return opened(who, partial(print, file=sys.stderr))


def model(organism: Organism | None = None, *, quick: bool, **options: Any) -> LanguageModel:
    """Return the embedded model, an organism if one is given, or the stand-in.

    Options are those of `educe.load`.
    """
    if quick:
        return stand_in()
    return educe.load(**(organism.how if organism else {"model": "embedded"}), **options)


@cache
def stand_in() -> LanguageModel:
    """Return the stand-in for the embedded model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = LlamaForCausalLM(LlamaConfig(**SHAPE))
    return LanguageModel(hf.eval(), tokenizer(), name="stand-in")


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the bundled corpus, which has the organisms' keys as tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<eos>", "<user>", "<assistant>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*passages(), *questions(), 100 * WORDS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", chat_template=TEMPLATE
    )


def organism(name: str, *, quick: bool) -> Organism:
    """Return an organism by its name or folder, in the quick form with the rule of the stand-in."""
    found = named(name)
    if not quick:
        return found
    search, fresh = (
        [Question(q.prompt, RULE) for q in some] for some in (found.search, found.fresh)
    )
    return replace(found, search=tuple(search), fresh=tuple(fresh))


@contextmanager
def kept(given: Path | None, *, quick: bool) -> Iterator[Path]:
    """Give the path that results are kept at; in the quick form, one that is gone afterwards.

    So nothing that a quick run measured is ever taken for a result.

    Raises:
        SystemExit: There is none.
    """
    if not quick:
        if given is None:
            raise SystemExit("say where to keep what is measured, or give --quick")
        yield given
        return
    with TemporaryDirectory() as folder:
        yield Path(folder) / "quick"
