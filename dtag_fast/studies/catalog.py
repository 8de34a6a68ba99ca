"""The studies by name."""

from __future__ import annotations

from dtag_fast.studies.declare import Study
from dtag_fast.studies.named import acting, critics, main_tables, policy_gradient, toy

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        toy.TOY_STUDY,
        main_tables.GYM,
        main_tables.MAZE2D,
        acting.STEPS,
        acting.OPTIMIZERS,
        main_tables.STITCHING,
        critics.CRITICS,
        main_tables.PREDICTORS_STUDY,
        acting.TEST_TIME,
        critics.SELECTION,
        policy_gradient.POLICY_GRADIENT,
        critics.ACTION_DIMS,
        critics.DIVERSITY,
    )
}


def study(name: str) -> Study:
    """The study of that name; ValueError if there is none."""
    if name not in STUDIES:
        raise ValueError(f"name: expected one of {', '.join(STUDIES)}, got {name!r}")
    return STUDIES[name]
