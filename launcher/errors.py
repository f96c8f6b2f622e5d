"""The one error that the launcher shows to a person."""


class LaunchError(Exception):
    """Why the mesh cannot run, and what to do about it. Shown without a traceback."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem
