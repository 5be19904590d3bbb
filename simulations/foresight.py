"""What of a simulation can be known before anything is prepared: device, precision, splits."""

from __future__ import annotations

from core.archives.splits import shares_of
from core.errors import UserError
from core.plan.schema import Config
from core.training.optimisation import make_scaler, resolve_device


def require_runnable(config: Config) -> None:
    """Requires that this machine has the device, that it can compute so, and that splits add up.

    Raises:
        UserError: names the key of the configuration.
    """
    try:
        device = resolve_device(config.simulation.device)
    except UserError as error:
        raise UserError(
            "simulation.device", error.value, error.remedy, problem=error.problem
        ) from None
    make_scaler(config.train, device)
    for name, site in config.simulation.sites.items():
        if not site.splits:
            shares_of(site.split, f"simulation.sites.{name}.split")
