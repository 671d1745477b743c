"""The two families of errors: the user can mend a UserError; everything else is our bug and keeps its traceback."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, an impossible request.

    Args:
        where: The file, folder or option at fault.
        what: What is wrong, with the value found and the values wanted.
        remedy: What to do about it.

    The text is one message, ``where: what; remedy``. The command line prints it and exits with code 2. ``result`` is
    what ``--json`` prints all the same, if there is anything.
    """

    result: dict | None = None
    exit_code = 2

    def __init__(self, where: str | PathLike, what: str, remedy: str):
        super().__init__(f"{where}: {what}; {remedy}")
        self.where, self.what, self.remedy = str(where), what, remedy

    def __reduce__(self):
        """Errors cross process borders; the default would call the class with the whole text alone."""
        return type(self), (self.where, self.what, self.remedy)

    @classmethod
    def of_validation(cls, where: str | PathLike, error: ValidationError) -> UserError:
        """The findings of pydantic about the values in ``where``, one sentence each."""
        findings = [
            f"{'.'.join(map(str, item['loc'])) or 'values'} = {item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        return cls(where, "; ".join(findings), "mend the values named")


class Stopped(Exception):
    """A signal ended a run; the option ``continuing`` goes on. The command line exits with 128 + ``signum``."""

    def __init__(self, signum: int, continuing: str = "--c"):
        super().__init__(signum, continuing)
        self.signum, self.continuing = signum, continuing


class CasesFailed(UserError):
    """Some cases of a run failed while the others were finished. The command line exits with code 3.

    Args:
        failures: case identifier -> message.
        written: The files of the cases that were finished.
        skipped: How many were finished before.
    """

    exit_code = 3

    def __init__(self, failures: dict[str, str], written: list[str], skipped: int = 0):
        lines = "".join(f"\n  {message}" for message in failures.values())
        super().__init__(
            f"{len(failures)} of {len(failures) + len(written) + skipped} cases failed",
            "the others were finished",
            f"mend these and run the same command on them again:{lines}",
        )
        self.failures, self.written, self.skipped = failures, written, skipped
        self.result = {"segmentations": written, "failed": failures}

    def __reduce__(self):
        return type(self), (self.failures, self.written, self.skipped)
