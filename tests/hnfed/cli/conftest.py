"""A simulation as small as those of the tests of simulations."""

from __future__ import annotations

from tests.simulations.conftest import phantom_cache, tiny

__all__ = ["phantom_cache", "tiny"]
