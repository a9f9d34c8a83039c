"""Provider: Inspect's models ``educe/MODEL``, so that any of its tasks runs under a perturbation.

    inspect eval TASK --model educe/MODEL -M run=RUN -M id=17

Without ``id`` it is the unperturbed model, read and written in the same way. What Inspect asks at
once is written in one batch (see `educe.serving.batching`). The model must be that of the run.
"""

from __future__ import annotations

from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from typing_extensions import override

from educe.errors import RunError
from educe.serving.batching import ROWS, Asked, Batcher


@modelapi(name="educe")
class EduceAPI(ModelAPI):
    """A perturbed model behind Inspect's interface.

    Args:
        model_name: The model, as `educe.load` takes it; the run's own options load it.
        base_url: Not used.
        api_key: Not used.
        config: Inspect's settings.
        run: The folder of the run.
        id: The perturbation's number there; 0 for the unperturbed model.
        model_args: Nothing else.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        run: str | None = None,
        id: int = 0,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if run is None or model_args:
            extra = f", not {', '.join(model_args)}" if model_args else ""
            raise RunError(f"educe/{model_name} takes -M run=FOLDER and -M id=NUMBER{extra}")
        self.number = int(id)
        self.batcher: Batcher = Batcher.of_run(run, model=model_name, numbers=[self.number])

    @override
    def close(self) -> None:
        self.batcher.close()

    @override
    def max_connections(self) -> int:
        return ROWS

    @override
    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        if tools:
            raise RunError("educe's perturbed models take no tools: choose a task without any")
        asked = Asked(
            self.number,
            [{"role": message.role, "content": message.text} for message in input],
            limit=config.max_tokens,
            temperature=config.temperature or 0.0,
            seed=config.seed,
            stop=config.stop_seqs or (),
            top=config.top_logprobs or 0,
        )
        done = self.batcher.ask(asked)
        limiter = anyio.CapacityLimiter(1)  # its own: all that are asked are to wait together
        came = await anyio.to_thread.run_sync(done.result, limiter=limiter, abandon_on_cancel=True)
        over = came.finished or asked.stopped
        assert asked.read is not None
        read, wrote = asked.read.lengths[0], len(came.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(
                        content=asked.text, model=self.model_name, source="generate"
                    ),
                    stop_reason="stop" if over else "max_tokens",
                    logprobs=self._logprobs(asked) if config.logprobs else None,
                )
            ],
            usage=ModelUsage(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote),
            metadata={"perturbation": self.number},
        )

    def _logprobs(self, asked: Asked) -> Logprobs:
        text, written = self.batcher.lm.text, asked.written
        lines = written.top or [{} for _ in written.tokens]
        return Logprobs(
            content=[
                Logprob(
                    token=text([token]),
                    logprob=nats,
                    top_logprobs=[
                        TopLogprob(token=text([other]), logprob=its)
                        for other, its in list(line.items())[: asked.top]
                    ],
                )
                for token, nats, line in zip(written.tokens, written.logprobs, lines, strict=True)
            ]
        )
