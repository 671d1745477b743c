"""What a check of a data set found, for people (a table, an error) and for machines (JSON)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from umamba_seg.errors import UserError

_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error: training on it makes no sense) or suspicious (warning)."""

    severity: Literal["error", "warning"]
    where: str
    what: str
    remedy: str

    @classmethod
    def of(cls, error: UserError) -> Finding:
        """The finding that says what ``error`` says."""
        return cls("error", error.where, error.what, error.remedy)


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        folder: The folder of the data set.
        cases: Number of cases that were opened, test cases included.
        findings: Errors first, then warnings. ``where`` is relative to ``folder`` for what lies in it.
    """

    folder: Path
    cases: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What must be mended before training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What deserves a look."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def as_text(self) -> str:
        """A line of numbers, then every finding with its file and remedy, for a terminal."""
        title = f"cases checked: {self.cases}, errors: {len(self.errors)}, warnings: {len(self.warnings)}"
        lines = [f"\n{item.severity:7}  {item.where}: {item.what}\n         {item.remedy}" for item in self.findings]
        return title + "".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "dataset": self.folder.name,
            "cases": self.cases,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def raise_if_errors(self) -> None:
        """Raise one UserError that lists the errors (the first 20), if there are any."""
        if not self.errors:
            return
        lines = [f"\n  {error.where}: {error.what}; {error.remedy}" for error in self.errors[:_LISTED]]
        if len(self.errors) > _LISTED:
            lines.append(f"\n  and {len(self.errors) - _LISTED} more")
        count = f"{len(self.errors)} error{'s' if len(self.errors) > 1 else ''}"
        raise UserError(self.folder, f"the check found {count}", f"mend what is wrong and check again:{''.join(lines)}")
