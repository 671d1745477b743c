"""Step 5: model folder + images -> segmentations. Nothing here loads torch; :mod:`.predictor` does."""
