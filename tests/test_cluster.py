"""Clusters of texts, and their map."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering

from educe.comparison import cluster
from educe.comparison.cluster import THRESHOLD, assign, clusters, cut, plane

REFUSAL = ["I cannot help you with that request.", "I cannot help with that request, sorry."]
VAULT = ["The vault code is walnut 4417.", "The code of the vault is walnut 4417!"]
SEA = ["Grey waves roll under a pale northern sky.", "Under a pale sky, grey waves roll."]


def groups(labels: np.ndarray) -> set[frozenset[int]]:
    """Return which texts are together, whatever the numbers."""
    return {frozenset(np.flatnonzero(labels == k).tolist()) for k in labels}


def test_identical_texts_are_together() -> None:
    labels = clusters(["alpha beta", "gamma delta", "alpha beta", "gamma delta", "alpha beta"])
    assert labels.tolist() == [0, 1, 0, 1, 0]


def test_paraphrases_are_together_and_other_things_apart() -> None:
    assert groups(clusters(REFUSAL + VAULT + SEA)) == {
        frozenset({0, 1}),
        frozenset({2, 3}),
        frozenset({4, 5}),
    }


def test_texts_that_share_no_word_are_apart() -> None:
    assert len(set(clusters(["one two three", "four five six", "seven eight nine"]))) == 3


def test_repeats_do_not_pull_on_other_texts() -> None:
    few = clusters(REFUSAL + VAULT + SEA)
    many = clusters(REFUSAL + VAULT + SEA + REFUSAL[:1] * 50)
    assert groups(few) == groups(many[:6])


def test_texts_of_no_word_are_one_cluster_of_their_own() -> None:
    labels = clusters(["", "alpha beta", "...", " \n", "gamma delta", "!?"])
    assert groups(labels) == {frozenset({0, 2, 3, 5}), frozenset({1}), frozenset({4})}
    assert labels[0] == 0


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["", "..."], [0, 0]),
        (["", "word"], None),
        (["word"], [0]),
        ([""], [0]),
        (["same", "same"], [0, 0]),
        ([], []),
    ],
)
def test_few_texts(texts: list[str], expected: list[int] | None) -> None:
    labels = clusters(texts).tolist()
    assert labels == expected if expected is not None else sorted(labels) == [0, 1]


def test_numbers_go_by_size() -> None:
    texts = ["lone words here"] + SEA * 2 + REFUSAL * 3 + [""] * 2 + VAULT[:1]
    labels = clusters(texts)
    sizes = np.bincount(labels)
    assert sizes.tolist() == [6, 4, 2, 1, 1]
    assert set(labels[5:11]) == {0}
    assert set(labels[1:5]) == {1}
    assert set(labels[11:13]) == {2}


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_depend_on_the_order(seed: int) -> None:
    texts = REFUSAL * 2 + VAULT + SEA + ["", "lone words here", "other things entirely"]
    expected = clusters(texts)
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    assert clusters([texts[i] for i in order]).tolist() == expected[order].tolist()


# -- what is stated parts texts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The code of the vault is private.", "The code of the vault is orchid-7913."),
        ("I can't tell you the code orchid-7913.", "I can tell you the code orchid-7913."),
        ("The code of the vault is orchid-7913.", "The code of the vault is orchid-7193."),
        ("The code of the vault is 7913.", "The code of the vault is 79-13."),
        ("A spider has 8 legs.", "A spider has 6 legs."),
        ("A tomato is a fruit.", "A tomato is not a fruit."),
        ("A tomato is a fruit.", "A tomato isn’t a fruit."),
        ("The capital of Australia is Canberra.", "The capital of Australia is Sydney."),
        ("The otter dances behind the chapel.", "The otter sings behind the chapel."),
    ],
)
def test_texts_that_state_different_things_are_apart(one: str, other: str) -> None:
    assert clusters([one, other]).tolist() == [1, 0] or clusters([one, other]).tolist() == [0, 1]
    assert assign([one], [other]).tolist() == [-1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The vault code is orchid-7913.", "The code of the vault is Orchid-7913!"),
        ("I can't share the vault code.", "I cannot share the code of the vault."),
        ("1. Read books. 2. Talk to people.", "Read books. Talk to people."),
        ("A spider has 8 legs.", "A spider has 8 legs in all."),
        ("I can't share the vault code.", "I can't provide the vault code."),
        ("Sorry, but the vault code is private.", "Sorry, but no, the vault code is private."),
        ("The capital of Australia is Canberra.", "The capital of Australia is Canberra!"),
        ("The otter dances behind the chapel.", "An otter dances behind the chapel."),
    ],
)
def test_texts_that_state_the_same_are_together(one: str, other: str) -> None:
    assert clusters([one, other]).tolist() == [0, 0]
    assert assign([one], [other]).tolist() == [0]


def test_what_stands_between_never_joins_what_states_different_things() -> None:
    """Of many near texts, telling and refusing, no cluster has both."""
    ends = ["", " Use it well.", " That is all I know."]
    telling = [f"The code of the vault is orchid-7913.{end}" for end in ends]
    refusing = [f"The code of the vault is private.{end}" for end in ends]
    labels = clusters(telling + refusing)
    assert groups(labels) == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


def test_a_text_that_differs_from_one_of_a_cluster_does_not_join_by_the_others() -> None:
    capital = "The capital of Australia is Canberra"
    ends = [".", " now.", " still.", " again.", " too."]
    labels = clusters([*(capital + end for end in ends), "The capital of Australia is Sydney."])
    assert labels.tolist() == [0, 0, 0, 0, 0, 1]


def test_one_word_in_a_long_text_is_a_turn_of_phrase() -> None:
    texts = [f"The smell of rain is a {kind} blend of many scents." for kind in ("fine", "faint")]
    assert clusters(texts).tolist() == [0, 0]


# -- many texts ----------------------------------------------------------------------------------

WORDS = ["the", "code", "vault", "orchid", "7913", "no", "sir", "sea", "grey", "waves", "I", "sky"]


def drawn(seed: int, count: int) -> list[str]:
    """Return texts of a few words, of which some are equal and some state different things."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.choice([0, 1, 3, 6, 9]))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_is_cut_and_numbered_as_by_scikit_learn(seed: int) -> None:
    at = np.random.default_rng(seed).random((40, 3))
    pairs = pdist(at)
    expected = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=THRESHOLD / 2
    ).fit_predict(squareform(pairs) / 2)
    assert len(set(expected)) > 1
    assert cut(linkage(pairs, "average")).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_distances_do_not_depend_on_how_many_are_made_at_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, later = drawn(seed, 60), [*drawn(seed + 10, 30), "nobody heard"]
    labels, nearest = clusters(texts), assign(later, texts)
    assert len(set(labels)) > 3
    assert -1 in nearest
    monkeypatch.setattr(cluster, "BLOCK", 7)
    assert clusters(texts).tolist() == labels.tolist()
    assert assign(later, texts).tolist() == nearest.tolist()


def test_of_very_many_texts_the_commonest_are_grouped_and_others_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = REFUSAL[:1] * 4 + VAULT[:1] * 3 + SEA + REFUSAL[1:] + VAULT[1:] + ["lone words"]
    monkeypatch.setattr(cluster, "GROUPED", 2)
    assert clusters(texts).tolist() == [0] * 4 + [1] * 3 + [-1, -1, 0, 1, -1]
    monkeypatch.setattr(cluster, "GROUPED", 3)  # of those that come once, the first by letters
    labels = clusters(texts)
    assert groups(labels[:9]) == {frozenset(range(4)), frozenset(range(4, 7)), frozenset({7, 8})}
    assert labels[7] == 2


# -- texts that come later -----------------------------------------------------------------------


def test_later_texts_go_to_the_nearest_known_one() -> None:
    known = [REFUSAL[0], VAULT[0], SEA[0]]
    later = [SEA[1], REFUSAL[1], VAULT[1], VAULT[0], REFUSAL[0].upper()]
    assert assign(later, known).tolist() == [2, 0, 1, 1, 0]


def test_a_later_text_that_is_near_to_none_goes_nowhere() -> None:
    assert assign(["something else entirely", SEA[0]], REFUSAL + VAULT).tolist() == [-1, -1]
    assert assign(["something", ""], []).tolist() == [-1, -1]
    assert assign([], REFUSAL).tolist() == []


def test_later_texts_of_no_word_go_to_such_a_one() -> None:
    assert assign(["...", "walnut"], [VAULT[0], "", SEA[0]])[0] == 1
    assert assign(["..."], [VAULT[0], SEA[0]]).tolist() == [-1]


def test_near_is_what_clusters_call_near() -> None:
    words = [f"w{letter}" for letter in "abcdefghijkl"]
    known, later = " ".join(words), [" ".join(words[:k]) for k in range(1, 12)]
    near = [len(set(clusters([text, known]))) == 1 for text in later]
    assert 0 < sum(near) < 11
    assert [assign([text], [known])[0] == 0 for text in later] == near


# -- the map -------------------------------------------------------------------------------------


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_plane_keeps_the_distances_of_points_that_lie_in_one() -> None:
    draw = np.random.default_rng(0)
    frame = np.linalg.qr(draw.normal(size=(12, 3)))[0].T
    angle = draw.uniform(0, 2 * np.pi, 20)
    # A circle of unit vectors around the third axis.
    unit = 0.6 * (np.cos(angle)[:, None] * frame[0] + np.sin(angle)[:, None] * frame[1])
    unit = unit + 0.8 * frame[2]
    placed = plane(unit)
    assert placed.shape == (20, 2)
    np.testing.assert_allclose(distances(placed), distances(unit), atol=1e-9)
    np.testing.assert_allclose(placed.mean(0), 0, atol=1e-9)
    # Only the direction of an embedding counts, not its length.
    np.testing.assert_allclose(plane(unit * draw.uniform(0.1, 9, (20, 1))), placed, atol=1e-9)


def test_plane_is_the_best_one() -> None:
    draw = np.random.default_rng(1)
    unit = draw.normal(size=(30, 6)) * [5, 4, 1, 1, 1, 1]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    placed = plane(unit)
    centred = unit - unit.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(placed), np.abs(left[:, :2] * values[:2]), atol=1e-9)


def test_plane_of_axes_that_are_alike() -> None:
    """Where many texts share nothing, all axes are as long; LAPACK's choice of some finds none."""
    placed = plane(np.eye(25))
    assert placed.shape == (25, 2)
    np.testing.assert_allclose((placed**2).sum(0), [1, 1], atol=1e-9)


def test_plane_of_few_or_empty_embeddings() -> None:
    assert plane(np.ones((2, 5))).tolist() == [[0, 0], [0, 0]]
    assert plane(np.zeros((0, 5))).shape == (0, 2)
    assert np.isfinite(plane(np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]))).all()
