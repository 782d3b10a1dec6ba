"""The one error that stands for bad input: its text is the single line a person reads."""


class StudyError(Exception):
    """Bad input or a failed step, told in one line (several lines only where several faults are listed)."""
