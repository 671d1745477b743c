"""``python -m umamba_seg.reproduce.child VERB ...``: the command line, which ends with the process that started it.

A run that outlives a worker that was killed would train beside the one that takes its place. So Linux is asked to send
SIGTERM when the parent is gone, at which trainings save a checkpoint.
"""

from __future__ import annotations

import ctypes
import signal
import sys

from umamba_seg.__main__ import main

_PR_SET_PDEATHSIG = 1  # of prctl(2)

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    sys.exit(main())
