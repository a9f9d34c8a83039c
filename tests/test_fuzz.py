"""Damaged and hostile files: each loader reads them or says in one sentence why it does not.

A file that a loader reads is changed at random, byte by byte or as JSON. What comes is a value or
an `EduceError`; no other error, no hang, and no memory beyond a bound. A thousand inputs in the
usual tests, a million by `make fuzz`.
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

import spread_run
from educe.comparison.texts import texts_of
from educe.errors import EduceError
from educe.methods import radius
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.model.prompts import read_prompts
from educe.organisms import organism, shipped
from educe.perturbation import foreign, positions
from educe.perturbation.set import PerturbationSet
from educe.run import database
from educe.run.settings import stored
from educe.run.store import Run
from educe.scores import Answer
from educe.scores.cache import Cached
from educe.scores.calibration import read_labelled
from educe.scores.naming import judge_named
from educe.scores.rules import Contains

#: Inputs of all loaders together, and of the slow job.
FEW, MANY = 1000, 1_000_000
#: What a loader may allocate for a file of some kilobytes, and seconds after which it hangs.
MEMORY, HANGS = 2**30, 60


@contextmanager
def bounded() -> Iterator[None]:
    """Let memory beyond the bound, and a hang, be errors."""

    def hung(*_: Any) -> None:
        raise AssertionError("the loader hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


# -- what is changed -------------------------------------------------------------------------------

#: Values that are none where they are put.
HOSTILE = [
    *(None, True, -1, 0, 2**31, 2**64, 10**400, 1e308, float("nan"), float("inf")),
    *("", "\0", "\ud800", "x" * 5000, "../../etc", [], {}, [[]], {"": None}),
    functools.reduce(lambda inner, _: [inner], range(3000), []),
    functools.reduce(lambda inner, _: {"content": inner}, range(200), "x"),
]


def bent(value: Any, draw: random.Random) -> Any:
    """Return JSON with something else at a random place."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: bent(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], bent(value[at], draw), *value[at + draw.randrange(2) :]]
    return draw.choice(HOSTILE)


def written(value: Any) -> bytes:
    """Return JSON as bytes, however deep it is."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few random changes; the beginning, where sizes stand, is changed most."""
    held = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(held), draw.choice([16, 200, 10**9])) or 1)
        way = draw.randrange(6)
        if way == 0:
            del held[at:]
        elif way == 1:
            held[at : at + 1] = draw.randbytes(1)
        elif way == 2:
            held[at : at + 8] = draw.choice([0, 1, 2**31 - 1, 2**62, 2**64 - 1]).to_bytes(
                8, "little"
            )
        elif way == 3:
            held[at:at] = held[: draw.randrange(64)]
        elif way == 4:
            held[at : at + draw.randrange(64)] = b""
        else:
            held[at : at + 1] = bytes([(held[at] if held else 0) ^ (1 << draw.randrange(8))])
    return bytes(held)


def as_bytes(raw: bytes, draw: random.Random) -> bytes:
    return damaged(raw, draw)


def as_json(raw: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return damaged(raw, draw)
    return written(bent(json.loads(raw), draw))


def as_lines(raw: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return damaged(raw, draw)
    lines = raw.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = written(bent(json.loads(lines[at]), draw))
    return b"\n".join(lines)


def as_header(raw: bytes, draw: random.Random) -> bytes:
    """Change the JSON that a safetensors file begins with, or values of JSON inside that."""
    if draw.random() < 0.3:
        return damaged(raw, draw)
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    inside = [key for key in header.get("__metadata__", {}) if key.endswith("_json")]
    if inside and draw.random() < 0.6:
        key = draw.choice(inside)
        header["__metadata__"][key] = written(
            bent(json.loads(header["__metadata__"][key]), draw)
        ).decode()
    else:
        header = bent(header, draw)
    new = written(header)
    return len(new).to_bytes(8, "little") + new + raw[8 + size :]


# -- what reads it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good file for each loader."""
    at = tmp_path_factory.mktemp("seeds")
    spread_run.carried_out(at / "run", spread_run.model(at / "model"))
    shutil.copy(at / "run" / "tensors" / "found-0.safetensors", at / "set.safetensors")
    some = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_file({"layers.1": some[0], "layers.2": some[1]}, at / "vectors.safetensors")
    torch.save({1: some[0], 3: some[2]}, at / "vectors.pt")
    np.savez(at / "vectors.npz", steering=some.numpy())
    out = gguf.GGUFWriter(str(at / "vectors.gguf"), "controlvector")
    out.add_string("controlvector.model_hint", "llama")
    out.add_tensor("direction.2", some[0].numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    factors = {name.format("A"): torch.randn(1, 48), name.format("B"): torch.randn(32, 1)}
    save_file(factors, at / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]}
    (at / "adapter_config.json").write_text(json.dumps(config))
    (at / "cfg.json").write_text('{"hook_name": "blocks.2.hook_resid_pre"}')
    save_file({"W_dec": some}, at / "sae_weights.safetensors")
    shutil.copy(shipped("vault").folder / "organism.json", at / "organism.json")
    prompts = ["Hi.", [{"role": "user", "content": "Hi."}], {"prompt": "Hi."}]
    (at / "prompts.json").write_text(json.dumps(prompts))
    (at / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (at / "prompts.csv").write_text('prompt,more\n"Hi, you",1\nWhy?,2\n')
    (at / "prompts.txt").write_text("Hi.\nWhy?\n")
    marked = [{"prompt": "Hi.", "text": "a", "label": k % 2 == 0, "plain": ["b"]} for k in range(3)]
    (at / "labelled.jsonl").write_text("\n".join(map(json.dumps, marked)))
    Cached(Contains("a"), at / "scores.sqlite").score([Answer("Hi.", "a"), Answer("Hi.", "b")])
    for ended in at.glob("scores.sqlite-*"):
        ended.unlink()
    return at


def read_run(folder: Path) -> None:
    with Run.open(folder) as run:
        stored(run)
        run.prompt_rows()
        run.perturbation_rows(derived=None)
        run.completion_rows()
        run.score_rows()
        run.missing()
        texts_of(run)


def read_large_run(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "WHOLE", 0)
        read_run(folder)


def read_scores(file: Path) -> None:
    Cached(Contains("a"), file).score([Answer("Hi.", "a"), Answer("Hi.", "c")])


def folder_of(*files: str) -> Callable[[Path, Path], Path]:
    """Return what puts other files of a folder beside the damaged one."""

    def beside(seeds: Path, file: Path) -> Path:
        for name in files:
            if name != file.name:
                shutil.copy(seeds / name, file.parent / name)
        return file.parent

    return beside


def alone(seeds: Path, file: Path) -> Path:
    return file


Change = Callable[[bytes, random.Random], bytes]
PEFT = folder_of("adapter_config.json", "adapter_model.safetensors")
SAE = folder_of("cfg.json", "sae_weights.safetensors")

#: The file that is changed, how, what lies beside it, and who reads it; foreign files need a model.
LOADERS: dict[str, tuple[str, Change, Callable[[Path, Path], Path], Any]] = {
    "a set": ("set.safetensors", as_header, alone, PerturbationSet.load),
    "vectors in safetensors": ("vectors.safetensors", as_header, alone, None),
    "vectors in pt": ("vectors.pt", as_bytes, alone, None),
    "vectors in npz": ("vectors.npz", as_bytes, alone, None),
    "vectors in gguf": ("vectors.gguf", as_bytes, alone, None),
    "an adapter": ("adapter_model.safetensors", as_header, PEFT, None),
    "an adapter's settings": ("adapter_config.json", as_json, PEFT, None),
    "an autoencoder": ("sae_weights.safetensors", as_header, SAE, None),
    "an autoencoder's settings": ("cfg.json", as_json, SAE, None),
    "a run": ("run.sqlite", as_bytes, lambda _, file: file.parent, read_run),
    "a large run": ("run.sqlite", as_bytes, lambda _, file: file.parent, read_large_run),
    "kept scores": ("scores.sqlite", as_bytes, alone, read_scores),
    "an organism": ("organism.json", as_json, lambda _, file: file.parent, organism.read),
    "prompts in json": ("prompts.json", as_json, alone, read_prompts),
    "prompts in lines": ("prompts.jsonl", as_lines, alone, read_prompts),
    "prompts in a table": ("prompts.csv", as_bytes, alone, read_prompts),
    "prompts in a text": ("prompts.txt", as_bytes, alone, read_prompts),
    "labelled answers": ("labelled.jsonl", as_lines, alone, read_labelled),
}


def tried(name: str, count: int, seeds: Path, place: Path, lm: LanguageModel) -> tuple[int, int]:
    """Change a file ``count`` times; return how often it was read, and how often refused."""
    file, change, beside, loader = LOADERS[name]
    where = seeds / "run" / file if file == "run.sqlite" else seeds / file
    raw, outcomes, told = where.read_bytes(), [0, 0], {}
    read = loader or (lambda path: given(str(path), lm))
    for i in range(count):
        draw = random.Random(f"{name} {i}")
        folder = place / str(i)
        folder.mkdir()
        (folder / file).write_bytes(change(raw, draw))
        try:
            with bounded():
                read(beside(seeds, folder / file))
            outcomes[0] += 1
        except EduceError as error:
            outcomes[1] += 1
            told[str(error)] = i
        except BaseException as error:
            error.add_note(f"input {i} of {name!r}")
            raise
        shutil.rmtree(folder)
    assert not [i for sentence, i in told.items() if "\n" in sentence]
    return outcomes[0], outcomes[1]


def given(path: str, lm: LanguageModel) -> None:
    foreign.check(path)
    foreign.read(path, lm, source=1, positions="all")


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_read_or_refused(
    name: str, seeds: Path, tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    _, refused = tried(name, FEW // len(LOADERS), seeds, tmp_path, tiny_lm)
    assert refused, "no change did any harm: what is tested?"


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_many_damaged_files(name: str, seeds: Path, tmp_path: Path, tiny_lm: LanguageModel) -> None:
    count = int(os.environ.get("FUZZ", MANY)) // len(LOADERS)
    print(name, tried(name, count, seeds, tmp_path, tiny_lm), flush=True)


#: Files of a model's folder, and inputs of each, which take a hundred times as long.
CHECKPOINT: dict[str, Change] = {
    "config.json": as_json,
    "model.safetensors": as_header,
    "tokenizer.json": as_json,
    "tokenizer_config.json": as_json,
    "generation_config.json": as_json,
}
FEW_DEAR, MANY_DEAR = 4, 2000


def loaded(file: str, count: int, seeds: Path, place: Path) -> list[int]:
    """Change a file of a model ``count`` times; return how often it was loaded, and refused."""
    outcomes = [0, 0]
    for i in range(count):
        draw, folder = random.Random(f"{file} {i}"), place / str(i)
        shutil.copytree(seeds / "model", folder)
        (folder / file).write_bytes(CHECKPOINT[file]((folder / file).read_bytes(), draw))
        try:
            with bounded():
                load(folder, device="cpu", progress=lambda sentence: None)
            outcomes[0] += 1
        except EduceError:
            outcomes[1] += 1
        shutil.rmtree(folder)
    return outcomes


@pytest.mark.parametrize("file", CHECKPOINT)
def test_a_damaged_model_is_loaded_or_refused(file: str, seeds: Path, tmp_path: Path) -> None:
    assert sum(loaded(file, FEW_DEAR, seeds, tmp_path)) == FEW_DEAR


@pytest.mark.slow
@pytest.mark.parametrize("file", CHECKPOINT)
def test_many_damaged_models(file: str, seeds: Path, tmp_path: Path) -> None:
    print(file, loaded(file, MANY_DEAR, seeds, tmp_path), flush=True)


# -- what is written on the command line -----------------------------------------------------------

WORDS = {
    "a judge": lambda text: judge_named(text) if not text.startswith(ASKING) else None,
    "a radius": radius.read,
    "positions": lambda text: positions.in_prompt(
        text, torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)
    ),
    "a file's rows": lambda text: foreign.check(f"none.safetensors:{text}"),
}
#: Judges that would load a model.
ASKING = ("coherence", "yes", "rating", "theme", "lying")
#: Parts that these are made of.
PARTS = [*"0123456789.,:-+xd ()[]*?\\eE\0\n", "regex:", "contains:", "exact:", "refusal", "novelty"]
PARTS += ["auto", "all", "prompt", "last:", "at:", "asked:", "asked", "generated", "inf", "nan"]
PARTS += ["9" * 400, "９", "é", "\ud800", "(?P<a>", "{,99999999}"]


@pytest.mark.parametrize("name", WORDS)
@hypothesis.settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    parts=st.lists(st.sampled_from(PARTS), max_size=8) | st.lists(st.text(max_size=9))
)
def test_any_words_are_understood_or_refused(name: str, parts: list[str]) -> None:
    with bounded(), suppress(EduceError):
        WORDS[name]("".join(parts))


def test_the_bounds_are_felt() -> None:
    with pytest.raises(MemoryError), bounded():
        bytearray(2 * MEMORY)
    before = signal.getsignal(signal.SIGALRM)
    with bounded():
        assert signal.getsignal(signal.SIGALRM) is not before
    assert signal.getsignal(signal.SIGALRM) is before
