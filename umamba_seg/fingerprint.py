"""Step 1: raw data set -> dataset_fingerprint.json (spacings, shapes, intensities), by nnU-Net's extractor."""

from __future__ import annotations

from umamba_seg.log import interactive, quiet


def extract_fingerprint(dataset_name: str, processes: int) -> dict:
    """Measure a raw data set and write ``dataset_fingerprint.json`` into its preprocessed folder.

    Args:
        dataset_name: E.g. ``Dataset004_Hippocampus``; nnU-Net's folders must have been exported.
        processes: Worker processes.

    Returns:
        The fingerprint: ``spacings`` (mm, slowest axis first), ``shapes_after_crop`` (voxels), intensity statistics
        of the foreground per channel and the median relative size after cropping to the nonzero region.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    with quiet():
        extractor = DatasetFingerprintExtractor(dataset_name, processes)
        extractor.show_progress_bar = interactive()
        return extractor.run(overwrite_existing=True)
