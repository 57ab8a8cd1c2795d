"""Presets reproduce the stored trajectories of torch, Keras and optax; options those of Chainer, autograd and thinc."""

import json

import pytest

from . import ours, problem
from .cases import CASES, PEERS
from .record import DATA

STORED = {
    stored["id"]: stored
    for framework in PEERS
    for stored in json.loads((DATA / f"{framework}.json").read_text(encoding="utf-8"))["cases"]
}


@pytest.mark.parametrize("reference", [False, True], ids=["gradstep", "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_stored_trajectory(case, reference):
    stored = STORED[case.id]
    as_stored = json.loads(json.dumps({"ours": case.ours, "theirs": case.theirs}))
    assert as_stored == {name: stored[name] for name in as_stored}, "cases.py has changed: run record.py again"
    assert problem.relative_error(ours.run(case, reference), stored["trajectory"]) <= case.peer.tolerance


def test_nothing_is_stored_that_is_not_in_the_table():
    assert STORED.keys() == {case.id for case in CASES}
