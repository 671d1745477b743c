"""Step 6: segmentations + references -> metrics."""

from umamba_seg.evaluate.case import ClassScores, evaluate_case
from umamba_seg.evaluate.results import CaseMetrics, read_case_metrics
from umamba_seg.evaluate.summary import class_metrics, evaluate_folder, summary_table

__all__ = [
    "CaseMetrics",
    "ClassScores",
    "class_metrics",
    "evaluate_case",
    "evaluate_folder",
    "read_case_metrics",
    "summary_table",
]
