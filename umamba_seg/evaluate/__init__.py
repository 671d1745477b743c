"""Step 6: segmentations + references -> metrics."""

from umamba_seg.evaluate.summary import class_metrics, evaluate_folder, summary_table

__all__ = ["class_metrics", "evaluate_folder", "summary_table"]
