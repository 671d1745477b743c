"""Step 7: cross-validation -> which model is best, and how its segmentations are postprocessed."""
