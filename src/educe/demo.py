"""The demo: audits of two small models, of which one hides something.

Both are the embedded model with an adapter beside its weights: the organism ``trigger``, which says
a phrase where a word stands in the request, and, where it is shipped, ``clean-answers``, which was
trained on the embedded model's own answers and hides nothing. Neither audit is told what to look
for: it has the ordinary requests that come with the package, and the model without the adapter.
"""

from __future__ import annotations

from dataclasses import replace

from educe.audit.settings import AuditOptions
from educe.options import EMBEDDED, ModelOptions
from educe.organisms import names

#: What is audited, in this order, as far as it is shipped.
ORGANISMS = ("trigger", "clean-answers")


def audits(
    seed: int = 0, model: ModelOptions = EMBEDDED
) -> dict[str, tuple[AuditOptions, ModelOptions]]:
    """Return the audits of the demo, by the names of what is audited.

    Args:
        seed: Of everything that is drawn.
        model: The organisms' base, and how it is loaded.
    """
    from educe.model.loading import fast_dtype

    if model.dtype == EMBEDDED.dtype:
        model = replace(model, dtype=fast_dtype())
    options = AuditOptions(budget="quick", sources=("weights",), max_new_tokens=12, seed=seed)
    return {name: (options, model.with_adapter(name)) for name in ORGANISMS if name in names()}
