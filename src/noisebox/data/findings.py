"""What a check of data comes to: findings, in the order in which things were looked at."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """An `error` would stop a training, a `warning` may be meant so, and `ok` was looked at and is in order."""

    severity: Severity
    where: str
    what: str
    fits: str = ""


def finding_of(severity: Severity, where: str, complaint: str, otherwise: str) -> Finding:
    """A complaint that itself says what would fit, after a semicolon, or else `otherwise`."""
    what, _, fits = complaint.partition("; ")
    return Finding(severity, where, what, fits or otherwise)
