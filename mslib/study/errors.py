"""The one error that stands for bad input: its text is the single line a person reads."""


class StudyError(Exception):
    """Bad input or a failed step, told in one line (several lines only where several faults are listed)."""


class WriteError(StudyError):
    """Output that cannot be written (full disk, locked folder): no fault of the data that was worked on."""
