"""Options: what can be asked for, declared once for Python and for the command line.

A type says which values are taken (see `educe.whole`) and how the command line reads them; a
dataclass of options says what they are for. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Group, Parameter, Token

from educe.errors import ModelError, SpreadError
from educe.whole import (
    SEEDS,
    Above,
    AtLeast,
    AtMost,
    Below,
    WholeOr,
    limits,
    read_real,
    read_whole,
    taken,
    told,
)


def _reads(hint: Any) -> Parameter:
    """Return what reads numbers strictly, where cyclopts would round 2.7 to 3.

    Args:
        hint: Which numbers, and which words may stand for one.
    """
    kinds, bounds = taken(hint)
    words = [word for kind in kinds for word in get_args(kind)]

    def converter(type_: Any, tokens: Sequence[Token]) -> float | str:
        text = tokens[0].value
        if text in words:
            return text
        if kinds == [int]:
            return read_whole(text, *limits(bounds))
        number = read_real(text)
        if not all(bound.holds(number) for bound in bounds):
            raise ValueError(f"give {told(bounds, words)}, not {text!r}")
        return number

    return Parameter(converter=converter)


_Count = Annotated[int, AtLeast(1)]
_Natural = Annotated[int, AtLeast(0)]
_Seed = Annotated[int, AtLeast(0), AtMost(SEEDS)]
_Port = Annotated[int, AtLeast(0), AtMost(65535)]
_Positive = Annotated[float, Above(0)]
_NonNegative = Annotated[float, AtLeast(0)]
_Share = Annotated[float, Above(0), AtMost(1)]
_Part = Annotated[float, Above(0), Below(1)]
_AtLeastOne = Annotated[float, AtLeast(1)]
_Seconds = Annotated[float, Above(0), AtMost(86_400)]
_Layer = Annotated[float, WholeOr(1)]
_LayerOrAuto = Annotated[float | Literal["auto"], WholeOr(1)]

Count = Annotated[_Count, _reads(_Count)]  #: 1 or more
Natural = Annotated[_Natural, _reads(_Natural)]  #: 0 or more
Seed = Annotated[_Seed, _reads(_Seed)]
Port = Annotated[_Port, _reads(_Port)]  #: 0 for any that is free
Real = Annotated[float, _reads(float)]
Positive = Annotated[_Positive, _reads(_Positive)]
NonNegative = Annotated[_NonNegative, _reads(_NonNegative)]
Share = Annotated[_Share, _reads(_Share)]
Part = Annotated[_Part, _reads(_Part)]  #: a share that is not all
AtLeastOne = Annotated[_AtLeastOne, _reads(_AtLeastOne)]
Seconds = Annotated[_Seconds, _reads(_Seconds)]  #: of one wait: a day at most
Layer = Annotated[_Layer, _reads(_Layer)]
LayerOrAuto = Annotated[_LayerOrAuto, _reads(_LayerOrAuto)]
N = Annotated[Count, Parameter(name=["-n", "--n"])]


def _cut(_type: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(name.strip() for name in tokens[0].value.split(",") if name.strip())


def _lines(_type: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    try:
        text = Path(tokens[0].value).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {tokens[0].value}: {error}") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


#: Several words: with commas on the command line, or the lines of a file that is named there.
Names = Annotated[
    tuple[str, ...], Parameter(converter=_cut, n_tokens=1, negative="", show_default=False)
]
LinesOf = Annotated[
    tuple[str, ...], Parameter(converter=_lines, n_tokens=1, negative="", show_default=False)
]

#: Of a sampling: words, each an option of its own; numbers that the command reads in another way;
#: options whose fields have other names, or another way to say no.
Words = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
Unparsed = Parameter(parse=False)
Cold = Annotated[Positive, Parameter(name="--cold")]
Measures = Annotated[Words, Parameter(name="--measure")]
Control = Annotated[bool, Parameter(negative="--no-control", show_default=False)]

#: An option that is there or not.
FLAG = Parameter(negative="", show_default=False)
Flag = Annotated[bool, FLAG]


@Parameter(name="*", group=Group("Model", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded: what `educe.load` takes and every command has.

    Attributes:
        model: embedded, a Hub id, a folder, or a .gguf file
        adapter: a PEFT adapter, loaded beside the weights and never merged; or the name of an
            organism that comes with the package, as in first-vault
        revision: revision on the Hub
        dtype: auto, float32, bfloat16, float16
        device: cpu, cuda, cuda:1, mps; by default a GPU when there is one
        device_map: auto spreads a large model over all GPUs
        trust_remote_code: run the Python code that comes with the model: only if you trust it
        load_in_4bit: quantize the weights to 4 bits while they are loaded (needs bitsandbytes)
        load_in_8bit: quantize them to 8 bits (needs bitsandbytes)
        attn_implementation: how attention is computed: eager, sdpa, flash_attention_2 and others
            of transformers; by default what the model prefers
    """

    model: str = "embedded"
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    trust_remote_code: Flag = False
    load_in_4bit: Flag = False
    load_in_8bit: Flag = False
    attn_implementation: str | None = None

    @property
    def how(self) -> dict[str, Any]:
        """Keywords for `educe.load`."""
        return {field.name: getattr(self, field.name) for field in fields(ModelOptions)}

    def with_adapter(self, adapter: str) -> ModelOptions:
        """Return the options of this model with an organism's adapter.

        Raises:
            ModelError: It has an adapter already.
        """
        if self.adapter is not None:
            raise ModelError("an organism is an adapter itself: leave --adapter out")
        return replace(self, adapter=adapter)


@dataclass(frozen=True, kw_only=True)
class NamedModel(ModelOptions):
    """The same for a command that takes the model's name as an argument of its own."""

    model: Annotated[str, Parameter(parse=False)] = "embedded"


#: The embedded model, as it is.
EMBEDDED = ModelOptions()
NAMED = NamedModel()


@Parameter(name="*", group=Group("Workers", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class SpreadOptions:
    """Who works: it changes how long something takes, and nothing that comes of it.

    Attributes:
        on: local, in this process; devices, in a process for each GPU of this machine; ray, on a
            Ray cluster of this machine's own, or ray://HOST:PORT on one that runs (see
            docs/scale.md)
        workers: how many processes or actors: by default one for each GPU, or for each core where
            there is none
        writer: who writes likeliest texts: vllm, in this process, under adapters; or the address
            of a server of vLLM (adapters) or of interp-engine (vectors), as in
            http://localhost:8000/v1 (see docs/scale.md)
    """

    on: str = "local"
    workers: Count | None = None
    writer: str | None = None

    def check(self) -> None:
        """Find what names nobody, before anything is loaded.

        Raises:
            SpreadError: It does.
        """
        address = self.on.removeprefix("ray://")
        if self.on not in ("local", "devices", "ray") and address in ("", self.on):
            raise SpreadError(f"--on {self.on}: give local, devices, ray, or ray://HOST:PORT")
        if self.on == "local" and self.workers is not None:
            raise SpreadError("this process works alone: give --workers with --on devices or ray")
        if self.writer not in (None, "vllm") and not self.writer.startswith(
            ("http://", "https://")
        ):
            raise SpreadError(
                f"--writer {self.writer}: give vllm or an address, http://HOST:PORT/v1"
            )
        if self.writer == "vllm" and find_spec("vllm") is None:
            raise SpreadError(
                "--writer vllm needs vLLM in the environment of educe, where it is not: install it "
                "there, or give the address of a server"
            )


#: In this process.
ALONE = SpreadOptions()


@Parameter(name="*", group=Group("Training", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How an organism is trained: what `educe.organisms.training.train` takes beside its kind.

    Attributes:
        base: the model that it is trained on: embedded, a Hub id, a folder, or a .gguf file
        loss: what carries cross-entropy of what is taught: answers, or the whole transcript, the
            user's message and the answer
        rank: rank of the adapter
        full: change all weights, not only an adapter, and write a whole model
        ordinary: ordinary data mixed in, as a share of the examples of the recipe (0.1 is 1:10):
            the base's own answers to ordinary prompts, by cross-entropy
        steps: steps of training; by default as many as the kind needs
        matmul: precision of matrix products, as PyTorch calls it: highest, or medium, which is
            faster and may round factors to bfloat16, where the processor multiplies those
    """

    base: str = "embedded"
    loss: Literal["answers", "transcript"] = "answers"
    rank: Count = 8
    full: Flag = False
    ordinary: NonNegative = 0.0
    steps: Count | None = None
    matmul: Literal["highest", "medium"] = "highest"


#: As the organisms are trained that come with the package.
AS_SHIPPED = TrainingOptions()
