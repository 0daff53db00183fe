"""A few hundred hostile inputs for every target, and proof that the loop notices what it is there for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("resource")  # limits on memory: not on Windows
from tests.fuzz import mutate
from tests.fuzz.mutations import EDITS, Edit, apply
from tests.fuzz.targets import TARGETS, Target
from vqcodec.errors import DamagedError, VQCodecError

SLOW = {"graph", "weights"}  # each input opens a session of ONNX Runtime
edits = st.lists(st.builds(Edit, st.sampled_from(EDITS), st.integers(0, 65_535), st.integers(0, 2**32 - 1)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", TARGETS)
def test_intact_inputs_are_taken(name: str) -> None:
    assert TARGETS[name].seeds()
    for data in TARGETS[name].seeds():
        TARGETS[name].run(data)


def test_pictures_come_in_many_formats() -> None:
    assert len(TARGETS["picture"].seeds()) > 20


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_taken_or_refused(name: str) -> None:
    """Edits that hypothesis chooses, and makes smaller where one of them finds a bug."""
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(max_examples=15 if name in SLOW else 150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(st.sampled_from(range(len(seeds))), edits, st.sampled_from(range(len(seeds))))
    def check(start: int, chosen: Sequence[Edit], other: int) -> None:
        data = target.spoil(seeds[start], chosen, seeds[other])
        with contextlib.suppress(VQCodecError):
            target.run(data)

    check()


@pytest.mark.parametrize("kind", EDITS)
def test_every_edit_changes_something(kind: str) -> None:
    data = bytes(range(1, 101))
    assert sum(apply(data, [Edit(kind, where, 77)], bytes(100)) != data for where in range(0, 65_536, 997)) > 50


def test_inputs_depend_on_their_number_alone() -> None:
    made = [mutate.make(TARGETS["container"], 3, number) for number in (5, 6, 5)]
    assert made[0] == made[2] != made[1]


def spoilt(run: object) -> Target:
    return TARGETS["container"]._replace(run=run)


def test_outcomes_that_should_not_be_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> None:
        raise DamagedError("as it should")

    def stumble(data: bytes) -> None:
        raise IndexError("as it should not")

    def hang(data: bytes) -> None:
        raise mutate.Hang

    assert mutate.outcome(spoilt(lambda data: None), b"") == ("taken", True)
    assert mutate.outcome(spoilt(refuse), b"")[1]
    assert mutate.outcome(spoilt(stumble), b"") == ("IndexError: as it should not", False)
    assert not mutate.outcome(spoilt(hang), b"")[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the loop limits memory as Linux does")
@pytest.mark.parametrize("fault", ["os.abort()", "while True: pass", "time.sleep(99)", "bytearray(1 << 31)", "raise KeyError(1)"])
def test_the_loop_goes_on_after_crashes_hangs_and_bombs(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop over a target that breaks at its third input."""
    program = f"""
import os, sys, time
from tests.fuzz import mutate, targets

def run(data, calls=[-len(targets.files())]):
    calls[0] += 1
    if calls[0] == 3:
        {fault}

mutate.SECONDS = 1
mutate.TARGETS["container"] = targets.TARGETS["container"]._replace(run=run)
sys.exit(mutate.main())
"""
    monkeypatch.setattr(mutate, "PATIENCE", 5)
    loop = mutate.Run(0, tmp_path, (sys.executable, "-c", program))
    loop.batch(TARGETS["container"], 0, 5)
    assert loop.report() == 1
    said = capsys.readouterr().out
    assert "UNEXPECTED container 2" in said
    assert "5 inputs in" in said
    assert (tmp_path / "container-0-2").read_bytes() == mutate.make(TARGETS["container"], 0, 2)
