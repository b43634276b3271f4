"""Laws, and whether they are kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Bench = TypeVar("Bench")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One law, and why it is broken; None where it holds."""

    law: str
    broken: str | None


def judged(law: Callable[[Bench], None], bench: Bench) -> Verdict:
    """Whether `law(bench)` passes; what the law is its docstring says."""
    said = (law.__doc__ or "").strip().split("\n")[0].rstrip(".")
    try:
        law(bench)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        return Verdict(law=said, broken=first)
    return Verdict(law=said, broken=None)


def require(what: str, verdicts: Iterable[Verdict]) -> None:
    """Raise AssertionError, naming every broken law, unless all are kept."""
    broken = [f"{v.law}: {v.broken}" for v in verdicts if v.broken]
    assert not broken, f"{what} breaks " + "; ".join(broken)
