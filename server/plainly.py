"""What Flower logs of an error that was told: its words, without the calls that led to it."""

from __future__ import annotations

import logging

from core.errors import UserError
from server.dispatch import RunFailed

FLOWERS = "flwr"  # the logger of Flower; its command line prints it for whoever follows a run


class Plainly(logging.Filter):
    """Takes the traceback from the record of an error whose own words are for the user."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        if record.exc_info and isinstance(record.exc_info[1], (UserError, RunFailed)):
            record.exc_info = record.exc_text = None
        return True


_PLAINLY = Plainly()


def speak_plainly() -> None:
    """From now on, in this process; a second call changes nothing."""
    logging.getLogger(FLOWERS).addFilter(_PLAINLY)
