"""`report.html`: what ran, how it learned, how good it is, what it left out; in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from core.files import replace_file
from core.tracking.foreign_run import of_run
from hnfed.report.run import RunFolder, read_run
from hnfed.report.view import view
from hnfed.report.wording import FILTERS

REPORT = "report.html"


def write_report(run: Path) -> Path:
    """Makes the run's `report.html` from what its folder holds, as far as the run came.

    Args:
        run: a run folder. Pictures and scores of single cases come from its `sites/`, which only a
            simulation has: the report of a real federation shows neither.

    Returns:
        The page, written in one step over an earlier one.

    Raises:
        UserError: the folder holds neither a journal nor metrics nor a configuration.
    """
    with of_run(run):
        text = render(read_run(run))
    path = run / REPORT
    replace_file(path, text)
    return path


def render(folder: RunFolder) -> str:
    """The page as text: every string of the run is escaped, no other file is referred to."""
    return page(Path(__file__).with_name("report.html.j2"), view(folder))


def page(template: Path, content: Mapping[str, Any]) -> str:
    """A page of this look: a template, filled; whatever it shows is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template(template.name).render(content)
