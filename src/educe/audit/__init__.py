"""The audit: what does this model hide, and how sure can one be?

    sources ─► suspected strings ─► funnel: answers on prompts of different kinds ─┐
       └─────► texts ──────────────────────────────────────────────────────────────┤
                                evidence ─► candidates ─► triggers, re-test ─► findings

Every source is a file in `sources/`, and all of them work in one run: what they put into prompts
are prompts with a parent, what they do to the model are perturbations, and what comes of it are
completions with a score, the contrast with a clean reference. `stages` puts them in order.
"""
