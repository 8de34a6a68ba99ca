"""The studies by name."""

from __future__ import annotations

from dtag_fast.studies.declare import Study
from dtag_fast.studies.named.toy import TOY_STUDY

STUDIES: dict[str, Study] = {study.name: study for study in (TOY_STUDY,)}


def study(name: str) -> Study:
    """The study of that name; ValueError if there is none."""
    if name not in STUDIES:
        raise ValueError(f"name: expected one of {', '.join(STUDIES)}, got {name!r}")
    return STUDIES[name]
