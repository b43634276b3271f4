"""What a user can get wrong, and what they are told."""


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
