"""Runs gradstep on the problem, as peers.py runs the peers."""

import gradstep
import gradstep.reference

from . import problem
from .cases import Case


def run(case: Case, reference: bool = False) -> problem.Trajectory:
    """The trajectory of `preset(framework)` with the case's overrides, or of the reference with its options.

    Where there is no preset of the framework, the overrides are of our defaults.
    """
    p = problem.START.copy()
    cls = getattr(gradstep, case.peer.cls)
    opt = cls.preset(case.framework, p, **case.ours) if case.framework in cls.presets else cls(p, **case.ours)
    if reference:
        options = {name: value for name, value in opt.groups[0].items() if name != "frozen"}
        opt = getattr(gradstep.reference, case.peer.cls)(p, **options, clip_norm=opt.clip_norm)
    if case.schedule:
        lr = opt.lr
        opt.lr = lambda step: problem.scheduled(lr, step)

    def update(g, _step):
        opt.step(g)
        return p.copy()

    return problem.trajectory(update, case.maximize)
