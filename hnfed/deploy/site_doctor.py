"""What `hnfed doctor` finds out from a site file: whose it is, and whether its archive is there."""

from __future__ import annotations

from collections.abc import Iterator

from core.archives.archive import open_archive
from core.data.site import Site
from core.errors import UserError
from core.organs.vocabulary import vocabulary
from hnfed.deploy.doctor import FAIL, PASS, Check, failed, judged
from hnfed.deploy.site_file import require_own_kit
from hnfed.guard.kit import Kit


def examine_site(site: Site, kit: Kit | None) -> Iterator[Check]:
    """Checks the site's name against the kit's, and opens the archive without reading an image."""
    if kit is not None:
        try:
            require_own_kit(site, kit)
            yield Check("site's name", PASS, f"{site.name}, the kit's", "")
        except UserError as error:
            yield failed("site's name", error)
    for source in site.sources:
        try:
            archive = open_archive(
                source.root,
                format=source.format,
                vocab=vocabulary(),
                aliases=source.aliases,
                structure_set=source.structure_set,
            )
        except UserError as error:
            yield failed("archive", error)
            continue
        cases = len(archive.cases)
        remedy = "give the archive's folder as `root`; hnfed check says more"
        yield judged("archive", cases > 0, f"{cases} cases are listed", remedy, FAIL)
