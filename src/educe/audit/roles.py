"""What the rows of an audit's run are for: the names of its judge, arms, roles and notes."""

from __future__ import annotations

#: The judge that says how much more the suspect expects of a text than the reference, in nats.
CONTRAST = "contrast"
#: The arm of the reference, and of models that are amplified away from it.
REFERENCE, AMPLIFIED = "reference", "amplified"
#: Prompts into which something was put, and requests made for the audit; a neutral request.
PUT, MADE, NEUTRAL = "put", "made", "neutral"
#: The notes of a run that say which sources have looked, and what each part cost.
LOOKED, SPENT = "looked", "spent"
#: What the parts of an audit beside the sources are called.
PLAIN, RETESTED = "plain", "re-test"
#: The part that strings of the re-test are put in for, and what roles of its prompts end with.
REPEATED = "again"
AGAIN = f":{REPEATED}"
