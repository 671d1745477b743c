"""Runs a verb of the command line and turns how it ends into an exit code.

Exit codes: 0 done; 1 a bug of ours, with its traceback; 2 something the user can mend; 3 some cases or runs failed, the
others were finished; 130 interrupted; 143 ended by SIGTERM. A training that was interrupted has saved a checkpoint.
"""

from __future__ import annotations

import errno
import json
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from umamba_seg.cli import build_parser
from umamba_seg.errors import Stopped, UserError

# What the disk and its permissions refuse. A file that is not found is no such case: we ask where one may be missing.
_USERS_ERRNO = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code."""
    arguments = build_parser().parse_args(argv)

    from umamba_seg import log

    log.configure(arguments.verbose)
    code = 0
    try:
        with log.only_messages() if arguments.json else nullcontext():
            result = arguments.run(arguments)
    except UserError as error:
        print(f"umamba-seg: {error}", file=sys.stderr)
        result, code = error.result, error.exit_code
    except OSError as error:
        if error.errno not in _USERS_ERRNO:
            raise
        where = error.filename or "a file that was being written"
        remedy = "check the path, its permissions and the disk"
        print(f"umamba-seg: {where}: {error.strerror}; {remedy}", file=sys.stderr)
        return 2
    except Stopped as stop:
        name = signal.Signals(stop.signum).name
        print(f"umamba-seg: stopped by {name}; continue with {stop.continuing}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("umamba-seg: interrupted", file=sys.stderr)
        return 130
    if arguments.json and result is not None:
        print(json.dumps(_without_nan(result), indent=2, allow_nan=False))
    return code


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for a score that does not exist."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    sys.exit(main())
