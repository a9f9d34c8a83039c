"""Applied: a model that is perturbed for plain transformers, as long as a ``with`` statement lasts.

    with found[3].applied(lm):
        lm.hf.generate(**lm.tokenizer("Why?", return_tensors="pt"))

Kinds that change the blocks do so by themselves (see `Kind.changing`). What is added to the stream
after a block has to know which tokens the model is reading. So three functions are wrapped: the
model's ``forward`` tells which columns of a text its tokens are, its ``generate`` tells where the
prompt ends, and the block's ``forward`` adds to what the block returns:

    columns   0 .. past | past .. past + new | ..          past: what the cache holds
              prompt .............| generated              the prompt ends at column ``P``
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from educe.errors import PositionsError, PromptError, SteeringError
from educe.model.asked import NOWHERE, Span
from educe.model.batch import PromptBatch
from educe.model.blocks import stream_out, with_stream
from educe.model.language import LanguageModel
from educe.perturbation import positions
from educe.perturbation.kinds import Kind


@contextmanager
def applied(
    lm: LanguageModel,
    kind: Kind,
    theta: Float[Tensor, "n s"],
    prompts: PromptBatch | None = None,
) -> Iterator[None]:
    """Perturb a model in place, see `educe.PerturbationSet.applied`."""
    n = len(theta)
    if n == 0 or (kind.alone and n > 1):
        raise SteeringError(
            f"{n} perturbations by {kind.name} cannot act together: take one, as in "
            "found[0].applied(lm)"
        )
    theta = theta.detach().double().to(lm.device, lm.dtype)
    acting = _Acting(lm, kind, theta, prompts)
    model, block = lm.unwrapped, lm.blocks[lm.layer(kind.before)]
    with ExitStack() as stack:
        stack.enter_context(kind.changing(lm, theta, range(n), acting.at))
        stack.enter_context(_wrapped(model, "forward", acting.forward))
        if hasattr(model, "generate"):
            stack.enter_context(_wrapped(model, "generate", acting.generate))
        if acting.adds:
            stack.enter_context(_wrapped(block, "forward", acting.block))
        stack.enter_context(_wrapped(lm, "forward", _refused))
        yield


def _refused(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Keep what educe measures, and what it remembers of a model, to the unperturbed one."""
    raise SteeringError(
        "educe runs the unperturbed model and perturbs it by itself: call lm.hf or lm.hf.generate "
        "inside of this with statement, and educe's functions outside"
    )


@contextmanager
def _wrapped(module: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Let ``around(own, *args, **kwargs)`` stand for a method of an object."""
    own, before = getattr(module, name), vars(module).get(name)
    # Its signature stays: transformers reads there what a model takes.
    setattr(module, name, functools.wraps(own)(functools.partial(around, own)))
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


class _Text(NamedTuple):
    """The prompts of the texts that a model is reading or writing."""

    end: int  #: the column at which prompts end and generated tokens begin
    chosen: Bool[Tensor, "r p"]  #: which tokens of them are perturbed
    stops: Int[Tensor, "r 1"]  #: the column behind the last token of each: ``end``, or padding's


class _Call(NamedTuple):
    """One call of the model."""

    text: _Text
    past: int  #: columns that its cache holds
    new: int  #: columns that it reads


class _Acting:
    """Some perturbations at work in a model."""

    def __init__(
        self, lm: LanguageModel, kind: Kind, theta: Tensor, prompts: PromptBatch | None
    ) -> None:
        self.lm, self.kind, self.theta, self.prompts = lm, kind, theta, prompts
        self.adds = self._added(range(-1, 0)) is not None
        self.call: _Call | None = None
        self.reached = False
        self.asked: dict[str, Any] | None = None  # of `generate`, while it runs
        self.writing: _Text | None = None  # what it writes
        self.texts: WeakKeyDictionary[Any, _Text] = WeakKeyDictionary()  # by their caches

    def _added(self, places: range) -> Float[Tensor, "n #t d"] | None:
        added = self.kind.added(self.theta, range(len(self.theta)), places)
        return None if added is None else added[:, 0]

    # -- what is wrapped ---------------------------------------------------------------------

    def generate(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note for what texts are asked, and let transformers write them."""
        before = self.asked, self.writing
        self.asked, self.writing = _by_name(own, args, kwargs), None
        given = _first(self.asked, "inputs", "input_ids", "inputs_embeds")
        try:
            self._check_rows(1 if given is None else len(given))
            return own(*args, **kwargs)
        finally:
            self.asked, self.writing = before

    def forward(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note which tokens the model is given, and let it read them."""
        given = _by_name(own, args, kwargs)
        tokens = _first(given, "input_ids", "inputs_embeds")
        if tokens is None:
            return own(*args, **kwargs)  # it will say what it misses
        self.call, self.reached = self._called(given, tokens), False
        try:
            came = own(*args, **kwargs)
        finally:
            self.call = None
        if self.adds and not self.reached:
            raise SteeringError(
                f"block {self.kind.before} was never called: nothing was added after it"
            )
        return came

    def block(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Add to the stream that the block returns."""
        output = own(*args, **kwargs)
        stream = stream_out(output)
        if self.call is None or stream.shape[:2] != (len(self.call.text.stops), self.call.new):
            raise SteeringError(
                f"block {self.kind.before} was called by something else than the model's own "
                "forward, so that its tokens are unknown: call lm.hf or lm.hf.generate"
            )
        self.reached = True
        return with_stream(output, self._perturbed(stream, self.call))

    def at(self) -> Bool[Tensor, "r t"]:
        """Return which of the tokens that the model reads now are perturbed."""
        assert self.call is not None, "the model is reading"
        text, past, new = self.call
        columns = torch.arange(past, past + new)
        behind = torch.full((len(text.stops), new), positions.in_generated(self.kind.positions))
        chosen = torch.cat([text.chosen[:, past:], behind[:, columns >= text.end]], 1)
        return chosen[:, :new]

    def _perturbed(self, stream: Float[Tensor, "r t d"], call: _Call) -> Float[Tensor, "r t d"]:
        text, rows, chosen = call.text, len(stream), self.at()
        columns = torch.arange(call.past, call.past + call.new)
        if not chosen.any():
            return stream
        places = torch.where(columns < text.end, columns - text.stops, columns - text.end)
        first = int(places.min())
        added = self._added(range(first, int(places.max()) + 1))
        assert added is not None
        added = added.repeat_interleave(rows // len(added), 0).to(stream)
        if added.shape[1] > 1:  # each place has its own
            at = (places - first).to(stream.device)
            added = added.gather(1, at[:, :, None].expand(-1, -1, added.shape[2]))
        return stream + added * chosen.to(stream)[:, :, None]

    # -- which tokens the model reads --------------------------------------------------------

    def _called(self, given: dict[str, Any], tokens: Tensor) -> _Call:
        rows, new = tokens.shape[:2]
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if self.asked is not None:
            if self.writing is None:
                self.writing = self._prompt_of(self.asked, given, rows, past + new)
            return _Call(self.writing, past, new)
        self._check_rows(rows)
        if past:  # the tokens behind those that a cache had first are generated ones
            none = torch.zeros(rows, past, dtype=torch.bool)
            text = self.texts.get(cache) or _Text(past, none, torch.full((rows, 1), past))
        else:
            text = self._text(given.get("input_ids"), self._mask(given, rows, new))
        if cache is not None:
            self.texts[cache] = text
        return _Call(text, past, new)

    def _check_rows(self, rows: int) -> None:
        n = len(self.theta)
        if n > 1 and rows != n:
            raise SteeringError(
                f"{n} perturbations act on {n} rows, one on each, but the model is given {rows}: "
                f"take one, as in found[0].applied(lm), or give {n} rows"
            )

    def _prompt_of(
        self, asked: dict[str, Any], given: dict[str, Any], rows: int, columns: int
    ) -> _Text:
        """Return the prompts of a call of ``generate``, from what it and ``forward`` are given.

        Each prompt has as many rows as beams or texts were asked for, one below the other.
        """
        ids = _first(asked, "inputs", "input_ids")
        if ids is None:
            ids = given.get("input_ids")
        if ids is not None and ids.ndim == 2:
            columns = max(columns, ids.shape[1])
        if asked.get("attention_mask") is not None:
            columns = max(columns, asked["attention_mask"].shape[-1])
            given = asked
        mask = self._mask(given, rows, columns)
        if not mask[:, -1].all():
            raise SteeringError(
                "a prompt has padding on its right, behind which transformers would go on, from "
                "what the model makes of the padding: set lm.tokenizer.padding_side = 'left'"
            )
        return self._text(ids, mask)

    def _mask(self, given: dict[str, Any], rows: int, columns: int) -> Int[Tensor, "r p"]:
        mask = given.get("attention_mask")
        if mask is None:
            return torch.ones(rows, columns, dtype=torch.int64)
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != columns:
            raise SteeringError(
                "where the prompts have padding cannot be told: give the model attention_mask, "
                f"1 for tokens and 0 for padding, [rows, {columns}]"
            )
        return mask.cpu().long().repeat_interleave(rows // len(mask), 0)

    def _text(self, ids: Tensor | None, mask: Int[Tensor, "r p"]) -> _Text:
        """Find the tokens of some prompts that are perturbed."""
        rows, end = mask.shape
        columns = torch.arange(1, end + 1)
        stops = (columns * mask.bool()).amax(1, keepdim=True)
        own = None
        if self.adds and self.kind.positions.startswith("asked"):
            if ids is None or ids.shape[1] != end:
                raise PositionsError(
                    f"positions {self.kind.positions!r} are tokens of a person's message, which is "
                    "looked for in token numbers: give the model all of the prompt's as input_ids"
                )
            own = self._asked(ids.cpu().repeat_interleave(rows // len(ids), 0), mask.bool())
        chosen = mask.bool()
        if self.adds:
            chosen = positions.in_prompt(self.kind.positions, mask, own)
        return _Text(end, chosen, stops)

    def _asked(self, ids: Int[Tensor, "r p"], mask: Bool[Tensor, "r p"]) -> Bool[Tensor, "r p"]:
        """Return which tokens of some prompts are the person's message."""
        known: dict[tuple[int, ...], Span] = {}
        if self.prompts is not None:
            known = dict(zip(self.prompts.read, self.prompts.spans, strict=True))
        own = torch.zeros_like(mask)
        for row, (line, there) in enumerate(zip(ids, mask, strict=True)):
            read = tuple(line[there].tolist())
            part = known.get(read, NOWHERE)
            if part == NOWHERE:
                part = message_of(self.lm, read)
            if part == NOWHERE:
                raise PositionsError(
                    f"positions {self.kind.positions!r}: which tokens of row {row} are the "
                    "person's message cannot be told from its token numbers; give the prompts as "
                    "educe reads them, batch = lm.encode(prompts), to applied(lm, batch), and "
                    "batch.ids and batch.mask to the model"
                )
            own[row, there.nonzero()[part.start : part.stop, 0]] = True
        return own


def message_of(lm: LanguageModel, read: tuple[int, ...]) -> Span:
    """Return which tokens of a prompt are the person's message, from the token numbers alone.

    It is found where the prompt is one message, with nothing before or behind it but what the chat
    template writes, or the tokenizer where there is no template; `LanguageModel.encode` must read
    the message that was found as exactly these tokens. Of anything else this is `NOWHERE`.
    """
    text = lm.tokenizer.decode(read, clean_up_tokenization_spaces=False)
    tries: list[tuple[str, dict[str, Any]]] = []
    if getattr(lm.tokenizer, "chat_template", None):
        mark = "q7Zk0Xw9"
        for thinking in (None, True, False):
            before, _, after = lm.render(mark, enable_thinking=thinking).partition(mark)
            message = text.removeprefix(before).removesuffix(after)
            # Several messages read like one that has the template's own words within.
            if text == before + message + after and not _holds(message, before, after):
                tries.append((message, {"enable_thinking": thinking}))
    else:
        tries.append((lm.tokenizer.decode(read, skip_special_tokens=True), {}))
    for message, how in tries:
        try:
            batch = lm.encode([message], **how)
        except PromptError:
            continue
        if batch.read == [read]:
            return batch.spans[0]
    return NOWHERE


def _holds(message: str, *parts: str) -> bool:
    return any(part.strip() in message for part in parts)


def _by_name(own: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names."""
    return dict(zip(inspect.signature(own).parameters, args, strict=False)) | kwargs


def _first(given: dict[str, Any], *names: str) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)
