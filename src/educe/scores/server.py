"""A language model behind a server that speaks the chat completions of OpenAI.

The official client does the talking: it opens connections, waits no longer than ``timeout``, and
tries again after rate limits, time-outs and errors of the server, with growing pauses (those that
the server asks for, where it does). Here is what it leaves open: how many calls are in flight, a
budget, and what to do where a server offers less:

    log-probabilities   without them the probability of a yes is not known: an error that says so
    structured output   without it the prompt alone asks for JSON, and the reply may be something
                        else; a server that refuses to hear of it is asked again without

A failure or a spent budget ends the calling, not what is under way: replies that are still coming,
and are paid for, are handed on before the error is raised.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from educe.errors import BudgetError, EduceError, JudgeError, ServerError
from educe.model.prompts import mended
from educe.scores.asking import Chance, word_of

T = TypeVar("T")

#: The most that the protocol gives.
TOP_LOGPROBS = 20


@dataclass
class Budget:
    """What may be spent, and what has been.

    A call is counted when it is made; its further tries are not. Tokens are counted when the reply
    says how many there were, so they can exceed the limit by those of the calls in flight.
    """

    calls: int | None = None  #: the most calls; none for no limit
    tokens: int | None = None  #: the most tokens, of questions and replies together
    calls_made: int = 0
    tokens_used: int = 0

    def take(self) -> None:
        """Count a call that is about to be made.

        Raises:
            BudgetError: The budget is spent.
        """
        spent = []
        if self.calls is not None and self.calls_made >= self.calls:
            spent.append(f"{self.calls_made} of {self.calls} calls")
        if self.tokens is not None and self.tokens_used >= self.tokens:
            spent.append(f"{self.tokens_used} of {self.tokens} tokens")
        if spent:
            raise BudgetError(
                f"the judge's budget is spent ({' and '.join(spent)}); what was paid for is kept: "
                "run the same again with a larger one"
            )
        self.calls_made += 1


class Server:
    """A language model behind an OpenAI-compatible server.

    The key is read from the environment variable of the client, ``OPENAI_API_KEY``.

    Args:
        url: Its address, with the path that comes before ``/chat/completions``.
        model: The model's name there.
        concurrency: The most calls in flight.
        timeout: Seconds to wait for an answer.
        retries: How often a call that failed is made again.
        budget: What may be spent; by default there is no limit.

    Raises:
        JudgeError: A number makes no sense.
    """

    cost = "one call, paid by its tokens"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        budget: Budget | None = None,
    ) -> None:
        if concurrency < 1 or timeout <= 0 or retries < 0:
            raise JudgeError("a server needs a concurrency and a time-out above 0, and retries")
        self.url, self.model, self.concurrency, self.timeout = url, model, concurrency, timeout
        self.budget = budget or Budget()
        self.identity = f"{url}:{model}"
        self._structured = True
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_retries=retries,
        )

    def write(
        self, questions: Sequence[str], *, limit: int, schema: Mapping[str, Any] | None = None
    ) -> Iterator[list[tuple[int, str]]]:
        """Let the model answer, one call a question.

        Raises:
            BudgetError: The budget is spent.
            ServerError: The server does not answer, or not as the protocol has it.
        """

        def one(question: str) -> tuple[str, int]:
            reply = self._ask_for(question, schema, max_tokens=limit, temperature=0)
            return mended(_first(self.url, reply).message.content or ""), self._tokens(reply)

        return self._called(questions, one)

    def yes(self, questions: Sequence[str]) -> Iterator[list[tuple[int, Chance]]]:
        """Read the probabilities among the 20 likeliest tokens; others count as 0.

        Raises:
            BudgetError: The budget is spent.
            ServerError: The server does not answer, or gives no log-probabilities.
        """

        def one(question: str) -> tuple[Chance, int]:
            # At temperature 1, so that a server that gives those after scaling gives the same.
            reply = self._ask(
                question, max_tokens=1, temperature=1, logprobs=True, top_logprobs=TOP_LOGPROBS
            )
            given = _first(self.url, reply).logprobs
            if given is None or given.content is None:
                raise ServerError(
                    f"{self.url} gives no log-probabilities, which yes: is read from: use rating:, "
                    "or a server that gives them"
                )
            shares = {"yes": 0.0, "no": 0.0}
            for each in given.content[0].top_logprobs if given.content else ():
                word = word_of(each.token)
                if word in shares:
                    shares[word] = max(shares[word], math.exp(each.logprob))
            return Chance(**shares), self._tokens(reply)

        return self._called(questions, one)

    def _called(
        self, questions: Sequence[str], one: Callable[[str], tuple[T, int]]
    ) -> Iterator[list[tuple[int, T]]]:
        """Ask every question, some at a time; yield the replies as they come."""
        todo = deque(range(len(questions)))
        running: dict[Future[tuple[T, int]], int] = {}
        failure: EduceError | None = None
        with ThreadPoolExecutor(self.concurrency) as pool:
            while running or (todo and failure is None):
                try:
                    while todo and failure is None and len(running) < self.concurrency:
                        self.budget.take()
                        line = todo.popleft()
                        running[pool.submit(one, questions[line])] = line
                except BudgetError as error:
                    failure = error
                came = []
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    line = running.pop(future)
                    try:
                        value, tokens = future.result()
                    except EduceError as error:
                        failure = failure or error
                    else:
                        self.budget.tokens_used += tokens
                        came.append((line, value))
                if came:
                    yield came
        if failure is not None:
            raise failure

    def _ask_for(self, question: str, schema: Mapping[str, Any] | None, **options: Any) -> Any:
        """Ask for an object of a schema, as far as the server offers that."""
        if schema is None or not self._structured:
            return self._ask(question, **options)
        form = {"name": "answer", "strict": True, "schema": schema}
        try:
            return self._ask(
                question, response_format={"type": "json_schema", "json_schema": form}, **options
            )
        except _RefusedError:
            reply = self._ask(question, **options)
            self._structured = False
            return reply

    def _ask(self, question: str, **options: Any) -> Any:
        try:
            return self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": question}], **options
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise _RefusedError(f"{self.url} refuses the question: {error}") from error
        except openai.APITimeoutError as error:
            tries = self._client.max_retries + 1
            raise ServerError(
                f"{self.url} gave no answer within {self.timeout:g} s, {tries} times: give it more "
                "time, or fewer calls at once"
            ) from error
        except openai.APIConnectionError as error:
            raise ServerError(
                f"there is no server at {self.url} ({error.__cause__ or error}): start it, or mend "
                "the address"
            ) from error
        except (openai.OpenAIError, ValueError) as error:
            raise ServerError(f"{self.url} does not answer as a server should: {error}") from error

    def _tokens(self, reply: Any) -> int:
        usage = getattr(reply, "usage", None)
        if usage is None and self.budget.tokens is not None:
            raise ServerError(
                f"{self.url} does not say how many tokens it used: limit the calls instead"
            )
        return usage.total_tokens if usage else 0


class _RefusedError(ServerError):
    """The server understood the call and does not want it, or something in it."""


def _first(url: str, reply: Any) -> Any:
    choices = getattr(reply, "choices", None)
    if not choices:
        raise ServerError(f"{url} does not answer with a chat completion: {str(reply)[:120]!r}")
    return choices[0]
