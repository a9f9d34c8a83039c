"""Measures of behaviour, for quality-diversity: two numbers for each text.

    texts        the first two principal components of TF-IDF vectors, fitted to what the run wrote
    length       words
    JUDGE        what a judge says, such as refusal or regex:PATTERN

A perturbation's measure is the mean over its texts. Ranges are known before anything is evaluated,
so that an archive's cells stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from educe.errors import MethodError
from educe.rows import FIRST, Row
from educe.run.fill import judge
from educe.run.work import Work
from educe.sampling.diversity import Range, ranges_of
from educe.scores import Judge

#: What measures the texts themselves, both numbers at once; and what their length.
TEXTS, LENGTH = "texts", "length"


class Measure:
    """Two measures of texts.

    Args:
        names: ``texts`` alone, or two of ``length`` and names of judges.
        judges: The judges among them, by their names.
        work: The run at work, whose texts the components are fitted to.

    Attributes:
        names: What the two are called.
        ranges: The least and the largest value of each.
    """

    def __init__(self, names: Sequence[str], judges: dict[str, Judge], work: Work) -> None:
        self._judges = judges
        if list(names) == [TEXTS]:
            said = [c.text for c in work.run.completion_rows(FIRST)]
            self._words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
            try:
                known = self._words.fit_transform(said)
                self._plane = TruncatedSVD(2, random_state=0).fit(known)
            except ValueError as error:
                raise MethodError(
                    f"the run's texts have no two components ({error}): measure length and a judge"
                ) from error
            self.names: tuple[str, ...] = ("component 1", "component 2")
            self.ranges: list[Range] = ranges_of(self._plane.transform(known))
            return
        if len(names) != 2 or TEXTS in names:
            raise MethodError("measures: give texts alone, or two of length and names of judges")
        self.names = tuple(names)
        self.ranges = [self._range(name, work.settings.max_new_tokens) for name in names]

    @staticmethod
    def _range(name: str, tokens: int) -> Range:
        if name == LENGTH:
            return 0.0, float(tokens)
        return (0.0, 10.0) if name.startswith("rating:") else (0.0, 1.0)

    def __call__(self, work: Work, rows: Sequence[Row]) -> Float[np.ndarray, "r 2"]:
        """Return both measures of each text."""
        of = {row.perturbation for row in rows}
        texts = {c.row: c.text for c in work.run.completion_rows(of=of)}
        said = [texts[row] for row in rows]
        if self.names[0] == "component 1":
            return self._plane.transform(self._words.transform(said))
        columns = [
            [float(len(text.split())) for text in said]
            if name == LENGTH
            else judge(work, self._judges[name], rows, name)
            for name in self.names
        ]
        return np.array(columns).T
