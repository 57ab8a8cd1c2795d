"""Schedules have the stored values of torch's and optax's, and the installed peers have the stored values."""

import copy
import json
import random

import pytest

import gradstep as gs

from . import peers, schedules
from .record import DATA
from .schedules import CASES, RUN, TOLERANCE, relative_error

STORED = {
    stored["id"]: stored
    for framework in RUN
    for stored in json.loads((DATA / f"schedules-{framework}.json").read_text(encoding="utf-8"))["cases"]
}
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@EVERY_CASE
def test_stored_values(case):
    stored = STORED[case.id]
    as_stored = json.loads(json.dumps({"ours": repr(case.ours), "theirs": case.theirs}))
    assert as_stored == {name: stored[name] for name in as_stored}, "schedules.py has changed: run record.py again"
    assert relative_error(schedules.ours(case), stored["values"]) <= TOLERANCE


def test_nothing_is_stored_that_is_not_in_the_table():
    assert STORED.keys() == {case.id for case in CASES}


def test_every_schedule_with_a_peer_is_in_the_table():
    without_a_peer = {"Schedule", "inverse_sqrt", "noam"}  # tests/test_schedules.py has their formulas
    assert {case.id.split("-")[1] for case in CASES} == set(gs.schedules.__all__) - without_a_peer


@pytest.mark.live
@EVERY_CASE
def test_installed_peer(case):
    if reason := peers.missing(case.framework):
        pytest.skip(reason)
    assert relative_error(STORED[case.id]["values"], RUN[case.framework](case)) <= TOLERANCE


@pytest.mark.live
@pytest.mark.parametrize("seed", range(100))
def test_plateau_on_random_losses(seed):
    torch = pytest.importorskip("torch")
    rng = random.Random(seed)
    settings = {
        "factor": rng.uniform(0.1, 0.99),
        "patience": rng.randrange(4),
        "mode": rng.choice(["min", "max"]),
        "threshold": rng.choice([0.0, 0.01, 0.3]),
        "threshold_mode": rng.choice(["rel", "abs"]),
        "cooldown": rng.randrange(4),
        "min_lr": rng.choice([0.0, 0.01, 0.2]),
        "eps": rng.choice([0.0, 1e-8, 1e-3]),
    }
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)
    ours = gs.schedules.plateau(0.1, **settings)
    special = [float("nan"), float("inf"), float("-inf")]
    for k in range(200):
        loss = rng.choice(special) if rng.random() < 0.02 else rng.gauss(10 / (1 + k), 1.0)
        ours.update(loss)
        theirs.step(loss)
        assert ours(k) == optimizer.param_groups[0]["lr"]
        if k == 100:
            ours = copy.deepcopy(ours)
