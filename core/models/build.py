"""From the plan's `model` to a network: one channel in, background and organs out, as logits."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from core.errors import UserError
from core.models.allowed import SHIPPED, require_allowed
from core.models.blocks import with_fast_layers
from core.models.res3dunet import res3dunet
from core.models.stages import head_rows
from core.models.unetr import norm_argument, unetr
from core.plan.ranges import MAX_PARAMETERS
from core.plan.schema import Model

LOG = logging.getLogger(__name__)
NORMS: Final = ("norm", "norm_name")
# Arguments within their ranges that do not fit each other raise these in MONAI and torch.
MISFITS: Final = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AttributeError,
)
_CHECKED: Final[deque[tuple[object, ...]]] = deque(maxlen=64)  # networks that were tried
BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build(settings: Model, organs: int, crop: Sequence[int]) -> nn.Module:
    """Builds the network of a plan: (B, 1, Z, Y, X) in, (B, 1 + organs, Z, Y, X) logits out.

    Args:
        settings: the plan's `model`; `name` and `args` are of `core.models.allowed`. `norm` goes to
            MONAI's networks where they take one and `args` gives none (groups that do not divide a
            width become instance norm, logged). Every organ begins near the probability `prior`.
        organs: number of organs of the phase; channel 0 is background.
        crop: (z, y, x) voxels that it will see.

    Raises:
        UserError: a name or an argument that is not on the list, arguments or crop that do not fit,
            batch norm, more than `MAX_PARAMETERS`, or a network that does not return one tensor of
            class logits in the shape of its input.
    """
    assert organs >= 1, organs
    if settings.norm not in ("instance", "group"):
        _refuse_norm(settings.norm)
    require_allowed(settings.name, settings.args)
    with _bounded(settings):
        match settings.name.lower():
            case "res3dunet":
                model: nn.Module = res3dunet(settings, 1 + organs, crop)
            case "unetr":
                _no_checkpointing(settings)
                model = with_fast_layers(unetr(settings, 1 + organs, crop))
            case _:
                _no_checkpointing(settings)
                model = with_fast_layers(_monai(settings, 1 + organs, crop))
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        _refuse_norm("batch norm", settings.name)
    checked = (repr(settings), organs, *crop)
    # `res3dunet` refuses by itself what does not fit, and each message builds the network. Trying a
    # network loads torch's compiler, which takes seconds: where it must be, once is enough.
    if settings.name.lower() != "res3dunet" and checked not in _CHECKED:
        _check_output(model, settings, 1 + organs, crop)
        _CHECKED.append(checked)
    _set_prior(model, settings.prior)
    return model


@contextlib.contextmanager
def _bounded(settings: Model) -> Iterator[None]:
    """Stops a network in the making as soon as it has more parameters than any machine bears."""
    seen: set[int] = set()
    total = 0
    maker = threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None or id(parameter) in seen or threading.get_ident() != maker:
            return
        seen.add(id(parameter))
        total += parameter.numel()
        if total > MAX_PARAMETERS:
            raise UserError(
                "model",
                settings.name,
                "choose fewer channels",
                problem=f"more than {MAX_PARAMETERS} parameters",
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def cost(model: nn.Module, crop: Sequence[int]) -> dict[str, float]:
    """Counts what one case of `crop` (z, y, x) voxels costs, without computing it.

    Returns:
        ``parameters`` (unique), ``gflop`` of one forward pass (multiply and add count 2) and
        ``activation_bytes``: what autograd keeps for the backward pass in float32, each storage
        once, parameters left out.
    """
    ghost = _ghost(model)
    own = {p.untyped_storage()._cdata for p in ghost.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    image = torch.zeros((1, 1, *crop), device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = ghost(image)
    del output
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "gflop": counter.get_total_flops() / 1e9,
        "activation_bytes": float(sum(storage.nbytes() for storage in kept.values())),
    }


def _set_prior(model: nn.Module, prior: float) -> None:
    """Shifts the head so that every organ begins near probability `prior` in every voxel.

    From equal classes a rare organ begins with a probability mass of thousands of times its size,
    and Dice terms, whose gradient is one over that mass, learn nothing at first (the prior of Lin
    et al., Focal loss for dense object detection, ICCV 2017, section 3.3, here over the softmax).
    """
    biases = [name for name in head_rows(model) if name.endswith("bias")]
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name in biases:
            named[name].zero_()
            named[name][1:] = math.log(prior)


def _ghost(model: nn.Module) -> nn.Module:
    """Returns a copy in training mode that has shapes but no values (device meta)."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo).train()


def _monai(settings: Model, classes: int, crop: Sequence[int]) -> nn.Module:
    from monai.networks import nets

    cls: type[nn.Module] = getattr(nets, settings.name)
    accepted = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": classes,
        "spatial_dims": 3,
    }
    arguments |= {key: _as_tuple(value) for key, value in settings.args.items()}
    norm = next((n for n in NORMS if n in accepted and n not in settings.args), None)
    if norm is None:
        return _construct(cls, arguments, settings)
    try:
        return _construct(cls, arguments | {norm: norm_argument(settings.norm, 8)}, settings)
    except UserError:
        if settings.norm != "group":
            raise
    model = _construct(cls, arguments | {norm: norm_argument("instance", 1)}, settings)
    LOG.warning("%s: its widths do not split into 8 groups; instance norm is used", settings.name)
    return model


def _construct(cls: type[nn.Module], arguments: dict[str, Any], settings: Model) -> nn.Module:
    try:
        return cls(**arguments)
    except UserError:
        raise
    except MISFITS as error:
        raise UserError(
            "model.args",
            settings.args,
            f"give what monai.networks.nets.{settings.name}{inspect.signature(cls)} needs",
            problem=str(error),
        ) from error


def _as_tuple(value: Any) -> Any:
    named = isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict)
    return tuple(value) if named else value


def _no_checkpointing(settings: Model) -> None:
    if settings.checkpointing:
        raise UserError(
            "model.checkpointing",
            True,
            "set it to false, or use res3dunet",
            problem=f"{settings.name} does not recompute its blocks by this key",
        )


def _refuse_norm(value: str, network: str = "") -> None:
    problem = "running statistics of one site say nothing at another and small batches spoil them"
    remedy = "use model.norm: instance or group"
    if network and network.lower() not in SHIPPED:
        remedy += f", or give {network} a norm, e.g. model.args: {{norm: [instance, {{affine: "
        remedy += "true}]}; if it takes none, choose another network"
    raise UserError("model.norm", value, remedy, problem=problem)


def _check_output(model: nn.Module, settings: Model, classes: int, crop: Sequence[int]) -> None:
    """Runs shapes only (device meta), in training mode: side outputs show there."""
    ghost = _ghost(model)
    expected = (1, classes, *crop)
    try:
        with torch.no_grad():
            output = ghost(torch.zeros((1, 1, *crop), device="meta"))
    except MISFITS as error:
        raise UserError(
            "model.args, preprocess.crop",
            f"{settings.args}, {list(crop)}",
            f"choose arguments that fit each other, and a crop that {settings.name} can take",
            problem=f"{error} ".splitlines()[0],
        ) from error
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != expected:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(
            "model.name",
            settings.name,
            "use a network (or args, e.g. deep_supervision: false) that returns class logits only",
            problem=f"it returns {got} where {expected} is needed",
        )
    last = dict(model.named_parameters())[head_rows(model)[0]]
    if last.shape[0] != classes:
        raise UserError(
            "model.name",
            settings.name,
            "use a network whose last convolution gives one channel per class",
            problem=f"its last convolution has {last.shape[0]} outputs, the plan {classes} classes",
        )
