"""Two runs of the suite side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.dialects.exceptions import Excuse

__all__ = ("Case", "Comparison", "read")


@dataclass(frozen=True, slots=True)
class Case:
    """How one case ended."""

    outcome: str
    """``passed``, ``failed`` or ``skipped``."""
    why: str = ""


def read(path: Path) -> dict[str, Case]:
    """The cases that a run has reported."""
    lines = map(json.loads, path.read_text().splitlines())
    return {line["case"]: Case(line["outcome"], line["why"]) for line in lines}


@dataclass(slots=True)
class Comparison:
    """What a driver's sandboxed run owes its plain one."""

    passed_plain: int = 0
    passed_sandboxed: int = 0
    """Of those that passed plain."""
    excused: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        driver: str,
        plain: Mapping[str, Case],
        sandboxed: Mapping[str, Case],
        excuses: Iterable[Excuse],
    ) -> Self:
        """Hold every case that passed plain against what became of it in a sandbox."""
        result = cls()
        listed = {excuse.case: excuse for excuse in excuses if driver in excuse.drivers}
        for name, case in plain.items():
            if case.outcome == "passed":
                result.passed_plain += 1
                result._hold(name, sandboxed.get(name), listed.pop(name, None))
        for name in listed:
            result.complaints.append(f"{name}: listed as an exception, but it does not pass plain")
        if not result.passed_plain:
            result.complaints.append("nothing passed plain")
        return result

    def _hold(self, name: str, case: Case | None, excuse: Excuse | None) -> None:
        if case is not None and case.outcome == "passed":
            self.passed_sandboxed += 1
            if excuse is not None:
                self.complaints.append(f"{name}: listed as an exception, but it passes")
        elif case is None or case.outcome != "failed":
            became = "did not run" if case is None else f"was {case.outcome}"
            self.complaints.append(f"{name}: passes plain, {became} sandboxed")
        elif excuse is None:
            self.complaints.append(f"{name}: passes plain, fails sandboxed: {_last(case.why)}")
        elif excuse.error not in case.why:
            self.complaints.append(
                f"{name}: listed as failing with {excuse.error!r}, but: {_last(case.why)}"
            )
        else:
            self.excused.append(f"{name}: {excuse.reason}")


def _last(why: str) -> str:
    """The error itself, of a traceback."""
    lines = [line.removeprefix("E").strip() for line in why.splitlines() if line.startswith("E ")]
    told = [line for line in lines if "Error" in line.partition(":")[0]] or lines
    return told[-1][:300] if told else why[-200:]
