"""Device, optimiser and learning rate: what one training call sets up and puts away again."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.plan.schema import Train
from core.training.memory import kept_heap
from core.training.ranks import ALONE, Group, sum_gradients

LARGEST_LOSS = 1e12  # no loss of ours is, of a network that learns
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")
_SCALER, _SCALER_STATE = "amp.scaler", ("scale", "_growth_tracker")
_SLOT = "::"  # between a parameter's name and the name of its optimiser value


class NonFiniteError(UserError):
    """Training diverged: nothing finite, or nothing of a size that is one (E_NONFINITE)."""


class DeviceMemoryError(UserError):
    """The device's memory does not suffice (reason code E_MEMORY)."""


def resolve_device(device: str | torch.device) -> torch.device:
    """Turns ``auto | cpu | cuda:N`` into a device that exists; ``auto``: first GPU, else CPU."""
    name = str(device)
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not index.isdigit()):
        raise UserError("device", name, "use auto, cpu or cuda:0")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UserError(
            "device", name, "use auto or cpu", problem=f"this machine shows {count} CUDA devices"
        )
    return torch.device("cuda", int(index or 0))


@contextmanager
def device_settings(
    settings: Train, device: torch.device, seed: int, processes: int = 1
) -> Iterator[None]:
    """Threads, determinism, heap and random state for one call; restored after it, but the heap.

    Args:
        settings: the plan's `train`.
        device: of this process.
        seed: of this process's random state.
        processes: that share the threads.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    forked = [device.index or 0] if device.type == "cuda" else []
    try:
        if settings.threads > 0 or processes > 1:
            torch.set_num_threads(max(1, (settings.threads or threads) // processes))
        if settings.deterministic:
            if device.type == "cuda":  # cuBLAS reads it as it begins
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Some CUDA kernels (3-D pooling and upsampling, backward) have no deterministic form.
            torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
            # Nothing here reads memory before it is written; to fill it takes a tenth of a step.
            memory.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = not settings.deterministic
        with (
            kept_heap(device),
            float32_products(settings, device),
            torch.random.fork_rng(devices=forked),
        ):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def float32_products(settings: Train, device: torch.device) -> Iterator[None]:
    """How exact products of float32 are on a GPU (`train.matmul`); on a CPU they stay as they are.

    ``highest`` is float32 itself, also in convolutions; ``high`` rounds factors to TF32 (10 bits).
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(settings.matmul)
        torch.backends.cudnn.allow_tf32 = settings.matmul != "highest"
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def learning_rate(settings: Train, epoch: float, total_epochs: int) -> float:
    """Learning rate at `epoch` (fractional, 0 = start of the phase): linear warm-up times schedule.

    ``poly`` is (1 - t)^0.9, ``cosine`` (1 + cos(pi t)) / 2, with t = epoch / total_epochs;
    ``constant`` is 1.
    """
    t = min(1.0, max(0.0, epoch / total_epochs))
    match settings.schedule:
        case "poly":
            factor = math.pow(1.0 - t, 0.9)
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * t))
        case "constant":
            factor = 1.0
        case other:
            raise UserError("train.schedule", other, "use poly, cosine or constant")
    if settings.warmup_epochs > 0:
        # Never quite 0, or the first step would be lost.
        factor *= min(1.0, max(epoch / settings.warmup_epochs, 0.01))
    return settings.lr * factor


def ramp(settings: Train, step: int, steps: int) -> float:
    """Factor on the learning rate of a step after a fresh start of the optimiser.

    Adam's first steps move every weight by the whole rate, whatever its gradient; they are small
    until its averages mean something: (step + 1) / (n + 1) for n = `ramp_steps` steps, but never
    for more than a quarter of them, so that no plan makes a round's steps vanish.

    Args:
        settings: the plan's `train`.
        step: since the fresh start, from 0.
        steps: that are taken before the next one.
    """
    return min(1.0, (step + 1) / (min(settings.ramp_steps, steps // 4) + 1))


def make_optimiser(settings: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum, in the fused kernels that CPU and CUDA both have."""
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(
                parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
            )
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.momentum > 0,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        case other:
            raise UserError("train.optimizer", other, "use adamw or sgd")


def precision(settings: Train, device: torch.device) -> torch.dtype | None:
    """The type of a forward pass by `train.amp`; None for float32.

    ``auto`` is bf16 on a GPU that has it, fp16 on another; on a CPU bf16 where it has units for
    products of it, else float32.
    """
    match settings.amp:
        case "off":
            return None
        case "bf16":
            return torch.bfloat16
        case "fp16" if device.type == "cuda":
            return torch.float16
        case "fp16":
            problem = f"the device is {device}"
            raise UserError("train.amp", "fp16", "use off, auto or bf16", problem=problem)
        case "auto":
            if device.type != "cuda":
                told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
                return torch.bfloat16 if told.get("amx_bf16") else None
            with torch.cuda.device(device):
                has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_bf16 else torch.float16
        case other:
            raise UserError("train.amp", other, "use off, auto, bf16 or fp16")


def make_scaler(settings: Train, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16; switched off for everything else."""
    enabled = precision(settings, device) == torch.float16
    return torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=enabled)


def scaler_tensors(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """What a scaler has found so far, for the optimiser's memory; {} of one that is off."""
    state = scaler.state_dict()
    return {
        f"{_SCALER}{_SLOT}{key}": torch.tensor(state[key], dtype=torch.float64)
        for key in _SCALER_STATE
        if key in state
    }


def load_scaler(scaler: torch.amp.GradScaler, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `scaler_tensors`; without effect on one that is off."""
    found = {key: tensors.get(f"{_SCALER}{_SLOT}{key}") for key in _SCALER_STATE}
    if not scaler.is_enabled() or None in found.values():
        return
    scale, grown = (float(v) for v in found.values() if v is not None)
    scaler.load_state_dict(
        scaler.state_dict() | {_SCALER_STATE[0]: scale, _SCALER_STATE[1]: int(grown)}
    )


def autocast(settings: Train, device: torch.device) -> torch.autocast:
    """The precision that the network's forward pass runs in."""
    dtype = precision(settings, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def autocast_scoring(settings: Train, device: torch.device) -> torch.autocast:
    """The same where nothing is trained: any `train.amp` but `off` is `auto`.

    Weights are scored and used on other machines than those that train them. There bf16 without
    units for it is fifty times slower, and fp16 may be refused.
    """
    return autocast(replace(settings, amp="auto") if settings.amp != "off" else settings, device)


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimiser's memory as flat CPU tensors ``PARAMETER::SLOT``, fit for safetensors."""
    return {
        f"{name}{_SLOT}{slot}": torch.as_tensor(value).detach().cpu().clone().contiguous()
        for name, parameter in named.items()
        for slot, value in optimiser.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """The inverse of `optimiser_tensors`; values of parameters that train no longer are left out.

    The optimiser must have been made of ``list(named.values())``.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(named.items()):
        for slot in [key for key in tensors if key.rpartition(_SLOT)[0] == name]:
            value = tensors[slot]
            if value.dim() > 0:
                if value.shape != parameter.shape:
                    raise UserError(
                        "optimiser state",
                        slot,
                        "start without it",
                        problem=f"shape {tuple(value.shape)}, not {tuple(parameter.shape)}",
                    )
                # The fused kernels walk memory in order: give it the strides of the parameter.
                value = torch.empty_like(parameter).copy_(value)
            state.setdefault(i, {})[slot.rpartition(_SLOT)[2]] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


class Proximal:
    """FedProx: adds mu * (w - w0) to the gradients, the gradient of mu / 2 * ||w - w0||^2."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        proximal: tuple[float, Mapping[str, Tensor]] | None,
    ) -> None:
        self.mu, start = proximal if proximal is not None else (0.0, {})
        # Copies: w0 must stay where it is even if it shares memory with the network.
        pairs = [(p, start[name].to(p, copy=True)) for name, p in named.items() if name in start]
        self.active = proximal is not None and bool(pairs)
        self.parameters = [p for p, _ in pairs]
        self.start = [w0 for _, w0 in pairs]
        self.value: Tensor | None = None

    def add_gradient(self) -> None:
        """Call between backward and the step; `value` then holds the term of the step."""
        if not self.active:
            return
        with torch.no_grad():
            away = [p - w0 for p, w0 in zip(self.parameters, self.start, strict=True)]
            squares = torch.stack([d.square().sum() for d in away])
            self.value = 0.5 * self.mu * squares.sum()
            for parameter, difference in zip(self.parameters, away, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(difference, alpha=self.mu)


class Averaged:
    """Running mean of the weights that train, over about the last `share` of the steps taken.

    After step t the mean moves to the new weights by 1 / (share * t + 1 - share): by 1 / t for a
    share of 1 (all steps weigh equally), and ever less of the early steps counts for a smaller one
    (polynomial-decay averaging, Shamir and Zhang, "Stochastic gradient descent for non-smooth
    optimization", ICML 2013). It needs no length of the training: at every step it is what a run
    of that length would end with.

    Args:
        share: above 0, at most 1.
        steps: steps taken before.
        mean: of an earlier call, by name.
    """

    def __init__(self, share: float, steps: int = 0, mean: Mapping[str, Tensor] | None = None):
        self.share = share
        self.steps = steps
        self.mean = {name: value.clone() for name, value in (mean or {}).items()}

    def add(self, named: Mapping[str, nn.Parameter]) -> None:
        """Takes in the weights after a step; those that have just begun to train as they are."""
        self.steps += 1
        part = 1 / (self.share * self.steps + 1 - self.share)
        for name, value in named.items():
            now = value.detach()
            before = self.mean.get(name, now)
            self.mean[name] = torch.lerp(before.to(now), now, part).contiguous()


def take_step(
    losses: Iterable[Tensor],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    pull: Proximal,
    clip_norm: float,
    group: Group = ALONE,
) -> bool:
    """One optimiser step; False, and no change, where something is not finite.

    Args:
        losses: of the parts of a batch, which add up to its loss; each part's forward pass runs as
            it is asked for, and its memory is free after its backward pass.
        optimiser: of the parameters that train.
        scaler: see `make_scaler`.
        pull: FedProx.
        clip_norm: longest gradient; 0 for any.
        group: the processes that have the other parts of the batch; all take the same step.
    """
    optimiser.zero_grad(set_to_none=True)
    finite = True
    for loss in losses:
        finite = bool(torch.isfinite(loss))
        if not finite:
            break
        torch.autograd.backward(scaler.scale(loss))
    parameters = [p for row in optimiser.param_groups for p in row["params"]]
    if not sum_gradients(group, parameters, finite):
        return False
    scaler.unscale_(optimiser)
    pull.add_gradient()
    limit = clip_norm if clip_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    finite = bool(torch.isfinite(norm))
    if finite:
        scaler.step(optimiser)
    scaler.update()
    return finite


def reads_none(optimiser: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether `take_step_unread` is to be used: on a GPU, which a read keeps waiting.

    SGD's momentum begins with the first gradient, so its first step cannot be left out on a GPU.
    """
    return device.type == "cuda" and isinstance(optimiser, torch.optim.AdamW)


def take_step_unread(
    losses: Iterable[Tensor],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    pull: Proximal,
    clip_norm: float,
) -> Tensor:
    """`take_step` without a word from the device: whether it was taken stays there, as a flag.

    The fused optimiser leaves a step out itself where it is told that something is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    flags: list[Tensor] = []
    for loss in losses:
        flags.append(torch.isfinite(loss.detach()))
        torch.autograd.backward(scaler.scale(loss))
    scaler.unscale_(optimiser)
    pull.add_gradient()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    limit = clip_norm if clip_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    finite = torch.stack([*flags, torch.isfinite(norm)]).all()
    slots: Any = optimiser  # as torch's own scaler tells it
    slots.grad_scale, slots.found_inf = None, (~finite).float()
    try:
        optimiser.step()
    finally:
        del slots.grad_scale, slots.found_inf
    scaler.update()
    return finite


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or in this machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | DeviceMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(w in str(error) for w in _NO_MEMORY)


@contextmanager
def memory_advice() -> Iterator[None]:
    """Says what helps when a device's memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise DeviceMemoryError(
            "device memory",
            str(error).splitlines()[0] if str(error) else "exhausted",
            "set model.checkpointing=true, train.amp=bf16 (GPU), train.accumulate=train.batch, or "
            "a smaller crop",
        ) from error
