"""Benchmarks and studies go their whole way: quick forms run, and say what can be checked."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import benchmarks.explorer
import benchmarks.keeping
from educe.methods import METHODS
from studies.sampling.table import tables as searches

ROOT = Path(__file__).parents[1]
#: By its name: a benchmark's file; a study's folder, or what is in it beside ``__main__``.
MODULES = {
    ("_".join(f.parts[1:-1]) if f.stem == "__main__" else "_".join((*f.parts[1:-1], f.stem))): f
    for part in ("benchmarks", "studies")
    for f in sorted(f.relative_to(ROOT) for f in (ROOT / part).rglob("*.py"))
    if 'if __name__ == "__main__"' in (ROOT / f).read_text(encoding="utf-8")
}


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, markdown or drawn, without their heads."""
    lines = [line.strip() for line in text.splitlines()]
    found = [re.split(r"[|│]", line)[1:-1] for line in lines if line[:1] in ("|", "│")]
    return [[cell.strip() for cell in row] for row in found if set("".join(row)) - set("-")]


def first(text: str) -> set[str]:
    return {row[0] for row in rows(text)}


def number(cell: str) -> float:
    found = re.match(r"-?[\d.]+", cell)
    assert found is not None, cell
    return float(found[0])


def backdoor(out: str) -> None:
    """The key changes the stream at the key more than later, where attention alone carries it."""
    lines = rows(out)[1:]
    assert [row[0] for row in lines] == ["1", "4", "6"]
    assert all(number(row[1]) > number(row[2]) > 0 for row in lines)


def backdoor_search(out: str) -> None:
    """Of 32 perturbations; logs of likelihoods, the best no less than the median."""
    (line,) = rows(out)
    assert line[5].endswith("of 32")
    assert number(line[7]) <= number(line[6]) < 0


def explorer(out: str) -> None:
    """Every screen was seen."""
    head, *lines = out.splitlines()
    assert head.startswith("60 completions")
    screens = [line.split(" s  ")[1] for line in lines]
    assert screens[3:] == list(benchmarks.explorer.SCREENS)


def corpus(out: str) -> None:
    """Three passages go on, three questions are answered, each a line of JSON."""
    assert [line[0] + line[-1] for line in out.splitlines()] == ['""'] * 6


def counterexample(out: str) -> None:
    """Half of the change is in directions that are not used, obliquely none: by construction."""
    shares = [float(value) for value in re.findall(r"outside=([\d.e-]+)", out)]
    assert shares == pytest.approx([0.5, 0.0], abs=1e-9)


def elicitation(out: str) -> None:
    """Each family has its line, of six perturbations on two questions; the floor has no price."""
    by = {row[0]: row for row in rows(out)[1:]}
    assert [*by] == ["sampling", "dct", "optimised"]
    assert all(re.search(r" of 6 ", row[1]) and " of 12 " in row[3] for row in by.values())
    assert by["sampling"][10:12] == ["–", "0 + 0"]
    assert all(number(by[family][11]) > 0 for family in ("dct", "optimised"))


def equal(out: str) -> None:
    """At equal effect both arms have one effect, at equal damage one KL."""
    lines = [row for row in rows(out) if row[2] in ("found", "random")]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    assert {found[1] for found, _ in pairs} == {
        "as used", "equal effect", "equal KL", "found at R, random at 4 R"
    }  # fmt: skip
    for found, random in pairs:
        if found[1] == "equal effect":
            assert number(found[5]) == pytest.approx(number(random[5]), rel=0.05)
        if found[1] == "equal KL":
            assert number(found[6]) == pytest.approx(number(random[6]), rel=0.2)


def forms(out: str) -> None:
    """With both corpora random vectors are farther out than differences between forms of text."""
    lines = rows(out)[1:]
    assert all(one[2:] != other[2:] for one, other in zip(lines[:5], lines[5:], strict=True))
    assert [line[0] for line in lines] == ["without varied"] * 5 + ["bundled"] * 5
    for *differences, random in (lines[:5], lines[5:]):
        assert random[2] == "random"
        assert random[5] not in ("natural", "exaggerated")
        assert all(number(random[6]) > 2 * number(line[6]) for line in differences)
        assert all(number(random[3]) < number(line[3]) for line in differences)


def fronts(out: str) -> None:
    """A penalty on the effect on other prompts makes a search quieter, and less effective."""
    by = {row[0]: row for row in rows(out)}
    for method in ("dct", "melbo"):
        plain, quieter = by[method], by[f"{method}, effect, μ 2"]
        assert number(quieter[1]) < number(plain[1])
        assert number(by["random"][2]) < number(quieter[2]) < number(plain[2])
    assert {"generalised", "dct, kl, μ 1"} <= by.keys()


def gpu(out: str) -> None:
    assert {"dct", "cpe", "2048", "32768"} <= first(out)


def grouping(out: str) -> None:
    """What states different things is apart: with the guards, fewer pairs are merged wrongly."""
    before, *lines = rows(out)[1:]
    merged = {line[1]: number(line[7]) for line in lines}
    assert before[:4] == ["words, as before", "none", "average", "0.75"]
    assert merged["numbers, declining"] < merged["none"] < number(before[7])
    assert number(lines[-1][5]) > number(before[5])
    assert all(0 < number(line[5]) <= 1 for line in lines)


def grouping_texts(out: str) -> None:
    """One greedy answer and 64 samples to each of three prompts; three of each of three arms."""
    (texts,) = re.findall(r"^vault: (\d+) texts", out, re.M)
    assert int(texts) == 3 * (1 + 64 + 3 * 3)


def turning(out: str) -> None:
    """What is held counts: without it nothing is lost of the effect."""
    lines = rows(out)[1:]
    assert [row[:2] for row in lines] == [
        [m, w] for m in ("dct", "melbo") for w in ("-1", "0", "1")
    ]
    for some in (lines[:3], lines[3:]):
        assert float(some[0][4]) < float(some[2][4])


def sampling(out: str) -> None:
    """Each search has its line beside its control; four finds answer two questions at most."""
    by = {row[0]: row for row in rows(out)[1:]}
    assert [*by] == ["random", "dct", "draws", "around", "de", "cma"]
    hits = {name: row[1].split(" (")[0] for name, row in by.items()}
    for name, row in by.items():
        control = {"dct": "random", "random": None, "draws": None}.get(name, "draws")
        assert row[2] == ("–" if control is None else hits[control])
        assert int(hits[name].split(" of ")[1]) in (2, 4, 6, 8)
        assert 0 <= number(row[5]) <= 1
        assert number(row[10]) <= 8


def hardening(out: str) -> None:
    """A vector costs something, and the model itself nothing; families stand by their models."""
    lines = rows(out)
    models = ["as it was", "distilled", "hardened, found+random", "hardened, fresh"]
    assert number({row[0]: row for row in lines}["best vector of the search"][4]) > 0
    plain = [row for row in lines if len(row) == 5 and row[0] in models]
    assert [row[0] for row in plain] == models
    assert all(number(row[4]) < 1e-3 for row in plain)  # the stand-in loads no adapter
    again = [row[:2] for row in lines if len(row) == 7][1:]
    wanted = [models[0], *models[2:]]
    assert again == [[f, model] for f in ("dct", "melbo", "random") for model in wanted]


def inside(out: str) -> None:
    """As loud means as loud as the free search; four methods, six arms each."""
    lines = [row for row in rows(out) if row[0] != "method"]
    assert len(lines) == 24
    for method in ("dct", "melbo", "power", "random"):
        effect = {row[1]: number(row[4]) for row in lines if row[0] == method}
        assert effect["inside, as loud"] == pytest.approx(effect["free"], abs=1)


def causes(out: str) -> None:
    """An answer stays with all components of its tokens; a key is placed at each layer."""
    lines = [row for row in rows(out) if row[0] != "layers"]
    assert len(lines) == 8
    for row in lines:
        if row[1] == "random, as many":
            assert "none" not in row[2]
    assert len(re.findall(r"^thinned .*, (balanced|components|random): ", out, re.M)) == 6
    assert len(re.findall(r"present [\d.]+ .* read [\d.]+ ", out)) == 2


def maxima(out: str) -> None:
    """Settling climbs; nothing has more maxima than vectors that became stationary."""
    for row in rows(out)[1:]:
        assert number(row[6]) >= 1
        assert 0 < number(row[4]) <= number(row[3])


def predict(out: str) -> None:
    """Every vector is in the table, of both methods and radii, and AUCs are shares."""
    told = re.search(r"(\d+) vectors, (\d+) elicit, (\d+) strata", out)
    assert told is not None
    assert told[1] == "64"
    assert told[3] == "4"
    lines = [row for row in rows(out) if row[0] not in ("statistic",)]
    assert {"effect", "spread, neurons", "held, heads"} <= {row[0] for row in lines}
    assert all(0 <= number(row[4]) <= 1 for row in lines)


def gathering(out: str) -> None:
    """Nothing is read first, then at least what was asked for."""
    sizes = [number(row[0]) for row in rows(out)[1:]]
    assert sizes[0] == 0
    assert sizes[1] >= 6000


def keeping(out: str) -> None:
    """A step after the other, each with its seconds and memory, and the size in the end."""
    head, *steps, size = out.splitlines()
    assert head.startswith("3000 completions")
    assert [step.split(":")[0] for step in steps] == list(benchmarks.keeping.STEPS)
    assert all(re.fullmatch(r".*: [\d.]+ s, \d+ MB", step) for step in steps)
    assert 300 < number(size.split(", ")[1]) < 1500  # bytes of a text, its tokens and four scores


def over(out: str) -> None:
    """Each way has 24 perturbations on three questions asked and three fresh ones."""
    lines = rows(out)[1:]
    assert [line[2] for line in lines] == ["mean", "least", "each", "random"]
    assert all(" of 72 " in cell for line in lines for cell in line[3:5])
    assert all(" of 24 " in line[5] for line in lines)


def audit(out: str) -> None:
    """One audit of the stand-in: texts are counted, a place is a whole number or none."""
    line = rows(out)[1]
    assert line[2] == "–" or int(line[2]) >= 1
    assert 0 < int(line[5]) <= int(line[6])
    assert "alarms on clean organisms 0 of 0" in out


def where(out: str) -> None:
    """Texts are of 2 vectors, three radii, two arms, three questions; 32 places are tried."""
    plain, scouted = rows(out)[1:]
    assert (plain[6], plain[9]) == ("–", "36")
    assert " of 96 " in scouted[6]
    assert scouted[9] == str(96 + 36)
    doses = [float(dose) for dose in scouted[5].split(", ")]
    assert doses == pytest.approx([doses[2] / 4, doses[2] / 2, doses[2]], abs=0.006)


def reading(out: str) -> None:
    """The organism's line, of which no perturbation of the stand-in told anything."""
    (line,) = rows(out)[1:]
    assert line[:3] == ["vault", "random", "0"]
    assert line[3:7] == ["0 of 2", "0 of 128", "0 of 4", "0 of 4"]
    assert line[7] == "no"


def recovery(out: str) -> None:
    """Planted factors are found by DCT, and not by chance."""
    by = {row[0]: row[-1] for row in rows(out)}
    assert by["dct, radius 4"] == "1.00, 100%"
    assert by["random"].endswith(" 0%")
    assert {"melbo", "dct-linear", "dct-quadratic"} <= by.keys()


def spectrum(out: str) -> None:
    """With more products all singular vectors come within the bound, and the layer map is near."""
    assert re.findall(r"here (\d) of 8", out)[-1] == "8"
    assert all(float(share) < 5 for share in re.findall(r"sigma too low by ([\d.]+)%", out))


def gcg(out: str) -> None:
    """Three texts; the loss falls, and as many candidates were read as asked for."""
    lines = rows(out)[1:]
    assert [line[2] for line in lines] == ["educe"] * 3
    assert all(number(line[3]) > 64 for line in lines)
    assert all(number(line[4]) >= number(line[5]) >= number(line[7]) > 0 for line in lines)


def causes_blind(out: str) -> None:
    """Every vector has a verdict; the lines of what is known hold all their ways."""
    hits = {line[0]: int(line[1].split(" of ")[1].split()[0]) for line in rows(out)[1:]}
    assert len(re.findall(r"^found .*: -?\d+% \(", out, re.M)) == hits["made by a text"] + hits[
        "made by none"
    ] + sum(n for name, n in hits.items() if name.endswith("(of unknown answer)"))
    assert hits["random (made by none)"] == 4
    assert hits["a role"] == hits["a sentence"] == 7


def speed(out: str) -> None:
    """Every way is compared on the same work, and every family has its costs."""
    assert METHODS.keys() <= first(out)
    apart = re.search(r"No vector ends further than (\S+) of its norm", " ".join(out.split()))
    assert apart is not None
    assert float(apart[1]) < 1e-3
    same = [cell for row in rows(out) for cell in row if re.fullmatch(r"\d+ of \d+", cell)]
    assert same
    assert all(one.split(" of ")[0] == one.split(" of ")[1] for one in same)


def throughput(out: str) -> None:
    """Each method beside its loop; shares are of one whole; every size and worker has a line."""
    lines = rows(out)
    beside = [line for line in lines if line[0] in ("melbo", "dct")]
    assert [line[1] for line in beside] == ["educe", "reference loop*"] * 2
    parts = [number(line[1]) for line in lines if line[1].endswith("%")]
    assert len(parts) == 6
    assert sum(parts) == pytest.approx(100, abs=0.5)
    sizes = [line[:2] for line in lines if len(line) == 7 and line[0].isdigit()]
    assert sizes == [["4", "none"], ["8", "none"], ["4", "1"], ["4", "2"]]
    rates = [number(line[2]) for line in lines if len(line) == 7]
    assert all(rate > 0 for rate in rates)


def writing(out: str) -> None:
    """All rows are written here; vLLM, which takes no narrow models, is left out."""
    assert re.search(r"^here: 8 texts, [\d.]+ a second", out, re.M)
    assert "vLLM does not write here" in out


def standing(out: str) -> None:
    """Fewer than a tenth of natural differences lie outside, and more of random vectors."""
    outside = {name: int(hits) for name, hits in re.findall(r"   ([a-z ]+) (\d+) of 500", out)}
    assert outside["natural differences"] < 50 < outside["random vectors"]


def word_ranks(out: str) -> None:
    """A rank is one of those that there are, the same number in every place."""
    cells = [cell for row in rows(out)[1:] for cell in row[1:]]
    ranks = [[int(part) for part in cell.split(" of ")] for cell in cells]
    assert len(ranks) == 4
    assert len({of for _, of in ranks}) == 1
    assert all(1 <= rank <= of for rank, of in ranks)


SAYS: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        audit, backdoor, backdoor_search, causes, causes_blind, corpus, counterexample,
        elicitation, equal, explorer, forms, fronts, gathering, gcg, gpu, grouping, grouping_texts,
        hardening, inside, keeping, maxima, over, predict, reading, recovery, sampling, spectrum,
        speed, standing, throughput, turning, where, word_ranks, writing,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_the_quick_form_goes_the_whole_way(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A new one is found by its file, and fails here until what it says is checked."""
    if name == "explorer" and not shutil.which("chromium"):
        pytest.skip("there is no Chromium")
    monkeypatch.chdir(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in ROOT.rglob("src/**/*.jsonl")}
    threads = torch.get_num_threads()
    importlib.import_module(".".join(MODULES[name].with_suffix("").parts)).main(["--quick"])
    torch.set_num_threads(threads)  # a study may choose how many it computes with
    said = capsys.readouterr()
    assert "its numbers prove nothing" in said.err
    SAYS[name](said.out)
    assert not list(tmp_path.iterdir())
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_search_that_ended_without_finds_counts_as_none() -> None:
    cell = {"organism": "one", "seed": 0, "seconds": 1.0}
    half = {"shows": [[1, 0]], "again": [[0.5, 0.1]], "coherence": [[1.0, 1.0]], "modes": 2}
    half |= {"seen": [0.5], "side_effect": [0.1], "dose": [0.15]}
    ended = {"ended": "the objective is 0", "shows": [[0, 0]]}
    records = [cell | {"row": "draws"} | half, cell | {"row": "diversity"} | ended]
    by = {row[0]: row for row in rows(searches(records))}
    assert by["draws"][1].startswith("1 of 2")
    assert by["diversity"][1:3] == ["0 of 2 (0% to 66%)", "1 of 2"]
    assert set(by["diversity"][5:11]) == {"–"}
