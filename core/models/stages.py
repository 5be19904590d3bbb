"""Which parameter belongs to which stage, and the state of a network without its doubles (D13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from core.errors import UserError
from core.models import res3dunet, unetr
from core.plan.schema import Model


def stage_table(settings: Model) -> Mapping[str, Sequence[str]]:
    """Returns stage name -> prefixes of parameter names.

    Raises:
        UserError: a network without a shipped table, and no `model.stages`.
    """
    if settings.stages:
        return settings.stages
    match settings.name.lower():
        case "res3dunet":
            return res3dunet.STAGES
        case "unetr":
            return unetr.STAGES
    raise UserError(
        "model.stages",
        "{}",
        "name each stage's modules, e.g. {encoder: [PREFIX], decoder: [PREFIX], head: [PREFIX]}",
        problem=f"{settings.name} has no shipped stage table",
    )


def stage_of(model: nn.Module, settings: Model) -> dict[str, str]:
    """Returns parameter name -> stage, each unique parameter once.

    Args:
        model: what `build` returned for `settings`.
        settings: the plan's `model`; `stages` overrides the shipped table.

    Raises:
        UserError: a parameter in no stage or in two, or a prefix that matches nothing.
    """
    table = stage_table(settings)
    names = [name for name, _ in model.named_parameters()]
    top = sorted({name.split(".")[0] for name in names})
    unused = {prefix for prefixes in table.values() for prefix in prefixes}
    stages: dict[str, str] = {}
    for name in names:
        hits = {(s, p) for s, ps in table.items() for p in ps if _under(name, p)}
        found = {stage for stage, _ in hits}
        unused -= {prefix for _, prefix in hits}
        if len(found) != 1:
            where = " and ".join(sorted(found)) if found else "no stage"
            raise UserError(
                "model.stages",
                dict(table),
                f"put each parameter in exactly one stage; the modules are {top}",
                problem=f"parameter {name} is in {where}",
            )
        stages[name] = found.pop()
    if unused:
        raise UserError(
            "model.stages",
            sorted(unused),
            f"remove or correct these prefixes; the modules are {top}",
            problem="no parameter's name starts so",
        )
    return stages


def unique_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights, every tensor once, under its first name (detached, not copied).

    MONAI's DynUNet lists its blocks twice (`skip_layers`), which would double what travels. Tensors
    of whole numbers are no weights: SwinUNETR's index tables are the network's own, as it is built.
    """
    seen: set[tuple[int, int, torch.Size, tuple[int, ...]]] = set()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = _identity(tensor)
        if not tensor.is_floating_point() or (tensor.numel() and key in seen):
            continue
        seen.add(key)
        state[name] = tensor
    return state


def load_unique(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copies a state made by `unique_state` into the model, in place.

    Args:
        model: a network with the same unique names and shapes.
        state: all names; a subset is refused (merge it into `unique_state(model)` first).

    Raises:
        UserError: names or shapes that do not fit.
    """
    own = unique_state(model)
    remedy = "use weights of the same network, organs and crop"
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise UserError(
            "weights", "", remedy, problem=f"missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, the network has {tuple(tensor.shape)}"
            raise UserError("weights", name, remedy, problem=f"shape {shapes}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def head_rows(model: nn.Module) -> list[str]:
    """Returns the names of the parameters whose dim 0 are the classes: the last convolution's.

    Raises:
        UserError: the last convolution is a transposed one (its dim 0 are its inputs), or missing.
    """
    convolutions = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)
    ]
    name, last = convolutions[-1] if convolutions else ("no convolution", None)
    if not isinstance(last, nn.Conv3d):
        raise UserError(
            "model.name",
            type(model).__name__,
            "use a network that ends in a plain convolution (MONAI's UNet: args num_res_units: 1)",
            problem=f"its last convolution is transposed or missing: {name}",
        )
    return [f"{name}.weight"] + ([f"{name}.bias"] if last.bias is not None else [])


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the learned scales and shifts of all instance, group and layer norms (D12)."""
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
    norms = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return {n for n, _ in model.named_parameters() if n.rpartition(".")[0] in norms}


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _identity(tensor: torch.Tensor) -> tuple[int, int, torch.Size, tuple[int, ...]]:
    storage = tensor.untyped_storage()._cdata
    return storage, int(tensor.storage_offset()), tensor.shape, tensor.stride()
