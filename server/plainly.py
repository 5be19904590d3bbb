"""What Flower logs of an error that was told: its words, without the calls that led to it."""

from __future__ import annotations

import logging

from core.errors import UserError
from server.dispatch import RunFailed

FLOWERS = "flwr"  # the logger of Flower; its command line prints it for whoever follows a run


def speak_plainly() -> None:
    """From now on, in this process; a second call changes nothing."""
    logging.getLogger(FLOWERS).addFilter(_plainly)


def _plainly(record: logging.LogRecord) -> bool:
    """Lets every record pass, without its traceback where the error's own words are for people."""
    if record.exc_info and isinstance(record.exc_info[1], (UserError, RunFailed)):
        record.exc_info = record.exc_text = None
    return True
