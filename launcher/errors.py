"""The launcher's error for users."""


class LaunchError(Exception):
    """A problem and a remedy. The command line prints both without a traceback."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem
