"""Figures of reports: ``*_info`` functions compute, ``*_figure`` functions only draw.

Colours of text, grid and background come from the template, so that a page can switch to a dark one.
"""

from lrbench_pl.analysis.plots._course import (
    ArrivalsInfo,
    CourseInfo,
    arrivals_figure,
    arrivals_info,
    course_figure,
    course_info,
    rates_figure,
)
from lrbench_pl.analysis.plots._mutual import (
    HeatInfo,
    SensitivityInfo,
    heat_figure,
    heat_info,
    sensitivity_figure,
    sensitivity_info,
)
from lrbench_pl.analysis.plots._ranking import Place, RankingInfo, ranking_figure, ranking_info
from lrbench_pl.analysis.plots._shared import Group, Line, groups, name_of, steps_and_hits
from lrbench_pl.analysis.plots._targets import TargetsInfo, targets_figure, targets_info
from lrbench_pl.analysis.plots._tuning import SegmentInfo, TuningInfo, tuning_figure, tuning_info

__all__ = [
    "ArrivalsInfo",
    "CourseInfo",
    "Group",
    "HeatInfo",
    "Line",
    "Place",
    "RankingInfo",
    "SegmentInfo",
    "SensitivityInfo",
    "TargetsInfo",
    "TuningInfo",
    "arrivals_figure",
    "arrivals_info",
    "course_figure",
    "course_info",
    "groups",
    "heat_figure",
    "heat_info",
    "name_of",
    "ranking_figure",
    "ranking_info",
    "rates_figure",
    "sensitivity_figure",
    "sensitivity_info",
    "steps_and_hits",
    "targets_figure",
    "targets_info",
    "tuning_figure",
    "tuning_info",
]
