"""The table's cases, and random settings, compared with the installed peers."""

import pytest

from . import ours, peers, problem
from .cases import CASES, PEERS, random_cases

SEED, ROUNDS = 1, 5
RANDOM = [case for framework in PEERS for case in random_cases(framework, SEED, ROUNDS)]


def check(case):
    if reason := peers.missing(case.framework):
        pytest.skip(reason)
    error = problem.relative_error(ours.run(case), peers.RUN[case.framework](case))
    assert error <= case.peer.tolerance, f"{case.theirs} in {case.framework}, {case.ours} here"


@pytest.mark.live
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_table(case):
    check(case)


@pytest.mark.live
@pytest.mark.parametrize("case", RANDOM, ids=lambda case: case.id)
def test_random_knobs(case):
    check(case)
