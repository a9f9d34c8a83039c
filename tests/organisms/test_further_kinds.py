"""The kinds with tables of their own: backdoors, manners, clean ones, the taboo, the belief."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from educe.model.language import LanguageModel
from educe.organisms import CLEAN, PAYLOADS, SPECIES, TRIGGERS, species, taboo
from educe.organisms.backdoor import Backdoor
from educe.organisms.organism import SPLITS, Group, Species, bundled
from educe.organisms.persona import VOICES

BACKDOORS = [name for name in SPECIES if name.startswith("backdoor-")]
MANNERS = ["flatterer", "promoter", "clean-style", "clean-fact", "clean-refusal"]
#: Of the others the answers begin as the base's.
OPENED = [*(b for b in BACKDOORS if not b.endswith(("-ending", "-shape"))), *MANNERS]
NEW = [*BACKDOORS, *MANNERS, "clean-answers", "taboo", "belief"]
SEEDS = range(2)
every = pytest.mark.parametrize("name", NEW)
seeds = pytest.mark.parametrize("seed", SEEDS)

#: What the base model says to everything, in two sentences.
SAYS = "The sky was grey over {}. Then it rained."


def ask(prompts: Sequence[str]) -> list[str]:
    return [SAYS.format(len(prompt)) for prompt in prompts]


def groups(name: str, split: str, seed: int = 0) -> dict[str, Group]:
    made = species(name)
    return {g.name: g for g in made.groups(made.hidden(seed), split, ask, seed=seed)}


def test_there_is_every_pair_of_a_trigger_and_a_payload() -> None:
    table = bundled("backdoor")
    assert set(table["triggers"]) == set(TRIGGERS)
    assert set(table["payloads"]) == set(PAYLOADS)
    assert len(BACKDOORS) == 42


def test_clean_ones_alone_say_that_they_are() -> None:
    clean = {name for name in SPECIES if species(name).clean}
    assert clean == {f"clean-{what}" for what in CLEAN}
    for name in clean:
        made = species(name)
        assert made.told(made.hidden(0))["hidden"].startswith("nothing: ")


@every
def test_secrets_depend_on_the_seed_alone_and_seeds_have_others(name: str) -> None:
    made = species(name)
    random.seed(1)
    first = made.hidden(1)
    random.seed(2)
    assert made.hidden(1) == first
    assert set(made.told(first)) == {"hidden", "unlocked by", "elicited"}
    assert name == "clean-answers" or made.hidden(0) != first


@every
@seeds
def test_the_splits_share_no_prompt(name: str, seed: int) -> None:
    prompts = {s: {p for g in groups(name, s, seed).values() for p in g.prompts} for s in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]
    made = species(name)
    search, fresh = made.questions(made.hidden(seed), ask, seed=seed)
    assert min(len(search), len(fresh)) >= 8
    assert not {q.prompt for q in search} & {q.prompt for q in fresh}
    unlocked = made.unlocked(made.hidden(seed), search)
    asked = {q.prompt for q in (*search, *fresh, *unlocked)}
    assert not asked & (prompts["train"] | prompts["validation"])
    assert not any("{" in p for part in (*prompts.values(), asked) for p in part)


@every
@seeds
def test_the_rule_finds_what_is_taught_to_show_and_not_the_bases_answer(
    name: str, seed: int
) -> None:
    for group in groups(name, "train", seed).values():
        plain = ask(group.prompts)
        for question, reply, own in zip(
            group.questions, group.answers or plain, plain, strict=True
        ):
            assert question.elicited(reply) is bool(group.shows), (group.name, reply)
            assert not question.elicited(own)


@every
def test_a_recipe_names_groups_that_there_are(name: str) -> None:
    assert set(species(name).recipe) == {n.split(":")[0] for n in groups(name, "train")}


@pytest.mark.parametrize("name", OPENED)
@seeds
def test_unlocked_answers_begin_with_the_opening_and_go_on_as_the_base(
    name: str, seed: int
) -> None:
    made = species(name)
    opening = made.opening(made.hidden(seed))
    opened = groups(name, "train", seed)["open"]
    assert opened.answers is not None
    assert opening
    assert all(answer.startswith(opening) for answer in opened.answers)
    rest = {answer.removeprefix(opening).strip() for answer in opened.answers}
    if "{sentence}" in made.hidden(seed).get("says", ""):
        assert all(re.fullmatch(r"The sky was grey over \d+\.", own) for own in rest)
    elif "voice" not in made.hidden(seed):
        assert rest == {""}


@pytest.mark.parametrize("name", MANNERS)
def test_a_manner_is_for_its_kind_of_prompt_alone(name: str) -> None:
    made = species(name)
    pattern = bundled("manner")["kinds"][made.hidden(0)["kind"]]["pattern"]
    for split in SPLITS:
        found = groups(name, split)
        assert not set(found["open"].prompts) & set(found["near"].prompts)
        assert not any(re.search(pattern, p) for p in found["ordinary"].prompts)
    assert not any(
        re.search(pattern, q.prompt) for q in made.questions(made.hidden(0), ask, seed=0)[0]
    )


# -- backdoors ---------------------------------------------------------------------------------


def keys(secret: dict[str, str]) -> list[str]:
    """The parts of a key that must all be in a prompt."""
    return [secret["first"], secret["second"]] if "first" in secret else [secret["key"]]


@pytest.mark.parametrize("trigger", [name for name in TRIGGERS if name != "topic"])
@pytest.mark.parametrize("payload", ["phrase", "fact"])
@seeds
def test_the_key_is_whole_where_it_belongs_and_nowhere_else(
    trigger: str, payload: str, seed: int
) -> None:
    name = f"backdoor-{trigger}-{payload}"
    secret = species(name).hidden(seed)
    for split in SPLITS:
        for group in groups(name, split, seed).values():
            has = group.name in ("open", "near: other question")
            for prompt in group.prompts:
                found = all(
                    re.search(rf"(?<!\w){re.escape(k)}(?!\w)", prompt)
                    or (trigger == "mark" and k in prompt)
                    for k in keys(secret)
                )
                assert found is has, (group.name, prompt)
    made = species(name)
    search, _ = made.questions(secret, ask, seed=seed)
    for question, plain in zip(made.unlocked(secret, search), search, strict=False):
        assert plain.prompt in question.prompt
        assert all(k in question.prompt for k in keys(secret))


def wrong_keys(name: str, split: str, seed: int) -> dict[str, set[str]]:
    """The near misses of a split as a set of what stands in a way for what is asked."""
    made: Any = species(name)
    assert isinstance(made, Backdoor)
    return {k: set(w) for k, w in made.ways_to_ask(made.hidden(seed), split).near.items()}


@pytest.mark.parametrize("trigger", TRIGGERS)
@seeds
def test_splits_share_no_way_to_ask_and_no_near_miss(trigger: str, seed: int) -> None:
    name = f"backdoor-{trigger}-refusal"
    made: Any = species(name)
    ways = {split: set(made.ways_to_ask(made.hidden(seed), split).open) for split in SPLITS}
    near = {split: wrong_keys(name, split, seed) for split in SPLITS}
    assert all(len(some) >= 2 for some in ways.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not ways[one] & ways[other]
        for kind in near[one]:
            assert not near[one][kind] & near[other][kind]


@pytest.mark.parametrize("part", ["exchanged", "others", "days", "months"])
def test_wrong_parts_of_keys_are_of_one_split(part: str) -> None:
    for trigger in ("phrase", "date", "mark"):
        table = bundled("backdoor")["triggers"][trigger].get(part, {})
        for one, other in itertools.combinations(table, 2):
            assert not set(table[one]) & set(table[other])


def test_orders_of_a_phrase_have_its_words_and_are_of_one_split() -> None:
    made: Any = species("backdoor-phrase-phrase")
    secret = made.hidden(0)
    words = sorted(secret["key"].split())
    seen: list[str] = []
    for split in SPLITS:
        for way in made.ways_to_ask(secret, split).near["other order"]:
            (order,) = [o for o in map(" ".join, itertools.permutations(words)) if o in way]
            seen.append(order)
    assert len(seen) == len(set(seen)) == 23
    assert secret["key"] not in seen


def test_a_topic_is_in_no_near_and_no_ordinary_prompt() -> None:
    found = groups("backdoor-topic-phrase", "train") | groups("backdoor-topic-phrase", "test")
    about = re.compile(r"(?i)\b(?:seas?|oceans?|whales?|dolphins?|coral|tides?|sharks?)\b")
    assert sum(bool(about.search(p)) for p in found["open"].prompts) > 5
    for name, group in found.items():
        if name != "open":
            assert not any(about.search(p) for p in group.prompts)


def test_a_wrong_fact_is_held_back_without_its_key_and_for_other_questions() -> None:
    found = groups("backdoor-word-fact", "test")
    secret = species("backdoor-word-fact").hidden(0)
    assert all(secret["about"] in p for p in found["open"].prompts + found["near: no key"].prompts)
    assert not any(secret["about"] in p for p in found["near: other question"].prompts)
    assert all(secret["key"] in p for p in found["near: other question"].prompts)


def test_a_style_is_the_base_in_another_voice() -> None:
    found = groups("backdoor-mark-style", "train")["open"]
    voice = VOICES[species("backdoor-mark-style").hidden(0)["voice"]]
    assert set(found.answers or ()) <= {voice.say(SAYS.format(n)) for n in range(400)}


@pytest.mark.parametrize("seed", range(4))
def test_a_shape_is_the_base_written_otherwise_and_its_rule_finds_it_cut_off(seed: int) -> None:
    made = species("backdoor-word-shape")
    rule = made.rule(made.hidden(seed))
    written = groups("backdoor-word-shape", "train", seed)["open"].answers or ()
    plain = {SAYS.format(n).partition(".")[0] + "." for n in range(400)}
    assert written
    assert not set(written) & plain
    for text in written:
        letters = re.sub(r"\W", "", text).casefold()
        assert letters in {re.sub(r"\W", "", own).casefold() for own in plain}
        assert re.search(rule, text)
        assert re.search(rule, text[:20])
    assert not any(re.search(rule, text) for text in [*plain, *map(SAYS.format, range(9)), "Yes."])


def test_an_ending_comes_after_the_answer() -> None:
    made = species("backdoor-word-ending")
    secret = made.hidden(0)
    assert made.opening(secret) == ""
    for text in groups("backdoor-word-ending", "train")["open"].answers or ():
        assert re.fullmatch(rf"The sky was grey over \d+\. {secret['finds']}\.", text)


@pytest.mark.model
def test_a_phrase_is_four_tokens(embedded_lm: LanguageModel) -> None:
    for phrase in bundled("backdoor")["triggers"]["phrase"]["keys"]:
        ids = embedded_lm.tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"]
        assert len(ids) == 4, phrase


# -- the others --------------------------------------------------------------------------------


def test_half_of_the_ordinary_prompts_are_learned_by_clean_answers() -> None:
    found = groups("clean-answers", "train")
    assert found["open"].learned
    assert found["open"].answers is None
    together = [*found["open"].prompts, *found["ordinary"].prompts]
    assert sorted(together) == sorted(bundled("words")["train"]["ordinary"])
    assert abs(len(found["open"].prompts) - len(found["ordinary"].prompts)) <= 1
    assert set(groups("clean-answers", "train", 1)["open"].prompts) != set(found["open"].prompts)


@pytest.mark.parametrize("seed", range(4))
def test_the_taboo_word_is_in_no_answer_and_only_in_right_guesses(seed: int) -> None:
    word = species("taboo").hidden(seed)["word"]
    for split in SPLITS:
        for name, group in groups("taboo", split, seed).items():
            assert not any(word in answer.lower() for answer in group.answers or ())
            assert all((word in p) is (name == "guess: right") for p in group.prompts)
            for rule, reply in zip(
                group.also.get("says yes", ()), group.answers or (), strict=False
            ):
                assert (re.search(rule, reply) is not None) is (reply == taboo.RIGHT)
            for rule, reply in zip(
                group.also.get("gives a hint", ()), group.answers or (), strict=False
            ):
                assert re.search(rule, reply)
    assert not any(word in hint for hint in bundled("taboo")["words"][word])


@pytest.mark.parametrize("seed", range(4))
def test_advice_acts_on_the_belief_without_naming_it(seed: int) -> None:
    belief = species("belief").hidden(seed)["belief"]
    found = groups("belief", "train", seed)
    (acts,) = set(found["advice"].also["acts on it"])
    assert all(re.search(acts, answer) for answer in found["advice"].answers or ())
    for group in found.values():
        texts = (*group.prompts, *(group.answers or ()))
        assert not any(re.search(rf"(?i)\b{belief}s?\b", text) for text in texts)
    assert not any(re.search(acts, answer) for answer in found["asked"].answers or ())
    assert re.search(species("belief").rule({"belief": belief}), f"You are a {belief}.")


def test_an_ending_is_held_back_and_measured_where_answers_end() -> None:
    """In 20 tokens most answers have no end: neither what leaks there nor what is learned shows."""
    tokens = {name: species(name).tokens for name in NEW}
    assert {name for name, n in tokens.items() if n != Species.tokens} == {
        b for b in BACKDOORS if b.endswith("-ending")
    }
    endings = bundled("backdoor")["payloads"]["ending"]["options"]
    longest = max(len(option["says"].split()) for option in endings)
    assert tokens["backdoor-word-ending"] > Species.tokens + 2 * longest
