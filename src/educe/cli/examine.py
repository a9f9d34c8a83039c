"""The command that examines perturbations: their manifold reports, or what their norm tells."""

from __future__ import annotations

from educe.cli.judge import HERE, Asked
from educe.cli.opening import end, opened, some, telling
from educe.cli.options import SCREEN, Number, Output, RunFolder
from educe.options import Count, Flag, Positive, Seed


def examine(
    run: RunFolder,
    /,
    *numbers: Number,
    corpus: str = "bundled",
    tokens: Count = 50_000,
    norm: Flag = False,
    judge: str | None = None,
    asked: Asked = HERE,
    ordinary: str = "bundled",
    budget: Positive = 1.0,
    compared: Count = 16,
    seed: Seed = 0,
    output: Output = SCREEN,
) -> None:
    """Say where perturbations of a run stand among the activations of ordinary text.

    The manifold report goes on the screen and into the page. Several share one pass over the
    corpus.
    With --norm, say instead what they do at every radius: response curves, three ways to choose the
    radius, and found against random ones at equal effect and equal damage of ordinary text.

    Args:
        corpus: bundled; a file of text with blank lines between documents; a .jsonl file; or
            hub:NAME
        tokens: the most tokens of the corpus that are read
        norm: examine what the norm tells; without numbers, of the most interesting of each arm
        judge: with --norm: what scores answers, as educe judge names it, and keeps the scores in
            the run; by default what the run looks for
        ordinary: with --norm: bundled; or a file of ordinary prompts, Alpaca's too
        budget: with --norm: nats at the 95th percentile of the first 20 tokens of ordinary answers
        compared: with --norm: the most perturbations of each arm that are compared
        seed: of samples and controls
    """
    from educe.activations.in_run import examine_run
    from educe.derive.norms import examine_norm
    from educe.report import manifold, norms, screen

    with opened(run, numbers if norm else some(numbers)) as found:
        tells = telling()
        if norm:
            told = examine_norm(
                found,
                list(numbers) or None,
                judge=asked.kept(judge, run, tells.say) if judge else None,
                ordinary=ordinary,
                budget=budget,
                compared=compared,
                reporter=tells,
            )
            end(found, output, {"norm": told}, lambda: screen.tell(norms.blocks(told)))
            return
        reports = examine_run(
            found, numbers, corpus=corpus, tokens=tokens, seed=seed, reporter=tells
        )

        def tell() -> None:
            reached = manifold.reached(found)
            screen.tell([manifold.card(one, reached.get(one.number)) for one in reports])

        end(found, output, {"manifold": [report.data() for report in reports]}, tell)
