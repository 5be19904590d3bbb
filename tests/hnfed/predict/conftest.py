"""What the tests of prediction share with those of training."""

from tests.core.training.conftest import entries

__all__ = ["entries"]
