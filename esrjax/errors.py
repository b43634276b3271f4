"""What a user can get wrong, and what they are told."""

from typing import Any


class UserError(Exception):
    """A mistake that the user can mend; the command line prints it without a traceback.

    problem: one sentence with the offending value. rule: what is expected. place: the file, key or
    layer where it was found. remedy: what to do about it.
    """

    def __init__(self, problem: str, *, rule: str, remedy: str, place: str | None = None):
        self.problem, self.rule, self.remedy, self.place = problem, rule, remedy, place
        lines = [problem, f"  rule:   {rule}", f"  remedy: {remedy}"]
        if place is not None:
            lines.insert(1, f"  place:  {place}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors also come from processes that load pictures."""
        return _again, (type(self), self.problem, self.rule, self.remedy, self.place)


def _again(
    kind: type[UserError], problem: str, rule: str, remedy: str, place: str | None
) -> UserError:
    return kind(problem, rule=rule, remedy=remedy, place=place)
