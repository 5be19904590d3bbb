"""A site with an archive, as the tests of the client have it."""

from __future__ import annotations

from tests.client.conftest import archive, make_phase, make_plan, prepared, shared_cache, site

__all__ = ["archive", "make_phase", "make_plan", "prepared", "shared_cache", "site"]
