"""The base class of errors that a user can correct."""

from typing import Any


class UserError(Exception):
    """Raised when the user can correct the cause; the command line prints it without a traceback.

    Args:
        problem: One sentence with the offending value.
        rule: What is expected instead.
        remedy: What the user can do about it.
        location: The file, key or layer where the problem was found, if there is one.

    The arguments are also attributes; `str(error)` has one line for each.
    """

    def __init__(self, problem: str, *, rule: str, remedy: str, location: str | None = None):
        self.problem, self.rule, self.remedy, self.location = problem, rule, remedy, location
        lines = [problem, f"  rule:     {rule}", f"  remedy:   {remedy}"]
        if location is not None:
            lines.insert(1, f"  location: {location}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the keyword arguments: errors also come from worker processes."""
        return _rebuild, (type(self), self.problem, self.rule, self.remedy, self.location)


def _rebuild(
    cls: type[UserError], problem: str, rule: str, remedy: str, location: str | None
) -> UserError:
    return cls(problem, rule=rule, remedy=remedy, location=location)
