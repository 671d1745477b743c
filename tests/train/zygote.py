"""Runs trainings for tests, each in a process of its own, without loading torch and nnU-Net every time.

Reads requests from stdin, one JSON object a line, and answers each with a line: ``{"argv", "err", "prepare", "env"}``
forks a process that runs the command line and answers with its pid; ``{"wait": pid}`` answers with its exit code.
"""

import json
import os
import sys
import traceback

import faults  # beside this file

from umamba_seg.__main__ import main
from umamba_seg.train import run


def _work(request: dict) -> int:
    error_file = os.open(request["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(error_file, 2)
    os.dup2(error_file, 1)
    os.environ.update(request["env"])
    run._validate = lambda *_: None  # the validation of whole cases has tests of its own, and takes long
    for name, values in request["prepare"].items():
        getattr(faults, name)(**values)
    try:
        return main(request["argv"])
    except BaseException:  # noqa: BLE001  (it must not go on as a second zygote)
        traceback.print_exc()
        return 1


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            os._exit(_work(request))
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
