"""An audit by workers is that of this process: its texts, what it suspects, what it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

import spread_audit
import spread_run
from educe.options import ALONE, SpreadOptions

TWO = SpreadOptions(on="devices", workers=2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    spread_audit.small(monkeypatch)


WITH = ("weights", "codes", "prefill", "kl", "crossed", "amplification", "scaling", "inversion")
WITHOUT = ("signs", "screen", "perturbations")


# Before few signs stand more tokens than they have, and each worker reads those.
@pytest.mark.parametrize(("sources", "clean", "before"), [(WITH, True, 0), (WITHOUT, False, 100)])
def test_an_audit_by_workers_is_that_of_this_process(
    tmp_path: Path, pair: tuple[Path, Path], sources: tuple[str, ...], clean: bool, before: int
) -> None:
    (here, cost), (there, spent) = (
        spread_audit.audited(tmp_path / name, pair, sources, clean=clean, spread=who)
        for name, who in (("here", ALONE), ("there", TWO))
    )
    assert here == there
    assert len(here["completions"]) > 20
    assert not clean or here["findings"]
    assert all(here.get(f"suspects:{name}", True) for name in sources)  # nobody suspects nothing
    for part, own in cost.items():  # each worker reads what its strings follow, and looks at models
        theirs = spent[part]
        assert own["passes"] <= theirs["passes"] <= own["passes"] + 16
        assert own["tokens"] - 1e-6 <= theirs["tokens"] <= own["tokens"] * 1.1 + before + 1e-6


def test_an_audit_whose_workers_are_killed_is_that_of_this_process(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    killer = spread_run.Killer(1, every=6, within=0.05, most=3)
    told = spread_run.Told(killer.step)
    sources = ("weights", "kl", "perturbations")
    here, _ = spread_audit.audited(tmp_path / "here", pair, sources, clean=True)
    there, _ = spread_audit.audited(
        tmp_path / "there", pair, sources, clean=True, reporter=told, spread=TWO
    )
    killer.end()
    assert killer.dead
    assert any(" died: " in line for line in told.said)
    assert here == there
