"""Networks that a plan or a checkpoint may ask for, and what each of their arguments may be.

A name alone would reach any class of MONAI, and an argument whatever that class does with it: open
a connection for trained weights, import a module, take all memory. So both are listed here, with
types and ranges; what is not listed is refused before anything is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Final

from core.errors import UserError
from core.plan.ranges import Range
from core.text import shown

Rule = Callable[[Any], str]
"""What is wrong with a value, in words that complete "give ..."; "" where nothing is."""

SHIPPED: Final = ("res3dunet", "unetr")
DEEPEST = 10  # levels of a network


def whole(low: int, high: int) -> Rule:
    """A whole number in a range, ends included."""
    held = Range(low, high)

    def wrong(value: Any) -> str:
        good = type(value) is int and held.holds(value)
        return "" if good else f"a whole number from {low} to {high}"

    return wrong


def real(low: float, high: float) -> Rule:
    """A number in a range, ends included."""
    held = Range(low, high)

    def wrong(value: Any) -> str:
        good = type(value) in (int, float) and held.holds(value)
        return "" if good else f"a number from {low:g} to {high:g}"

    return wrong


def flag(value: Any) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else "true or false"


def one_of(*words: str) -> Rule:
    """One of some words, capitals or not."""

    def wrong(value: Any) -> str:
        good = isinstance(value, str) and value.lower() in words
        return "" if good else f"one of {', '.join(words)}"

    return wrong


def listed(rule: Rule, most: int = DEEPEST) -> Rule:
    """A list of values of one rule, at least one."""

    def wrong(value: Any) -> str:
        good = isinstance(value, list | tuple) and 1 <= len(value) <= most
        if not good:
            return f"a list of 1 to {most} entries"
        found = next((w for w in map(rule, value) if w), "")
        return f"a list whose entries are {found}" if found else ""

    return wrong


def either(*rules: Rule) -> Rule:
    """What one of some rules allows."""

    def wrong(value: Any) -> str:
        found = [rule(value) for rule in rules]
        return "" if "" in found else ", or ".join(found)

    return wrong


def named(words: Rule, options: Mapping[str, Rule]) -> Rule:
    """A word, or [word, {option: value}], as MONAI's layers are named."""

    def wrong(value: Any) -> str:
        if isinstance(value, str):
            return words(value)
        pair = isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[1], Mapping)
        if not pair:
            return f"{words(None)}, or [NAME, {{OPTION: VALUE}}]"
        for key, item in value[1].items():
            if key not in options:
                return f"options of {', '.join(options)} alone"
            if found := options[key](item):
                return f"for {key} {found}"
        return words(value[0])

    return wrong


WIDTH = whole(1, 2048)
STEP = whole(1, 8)
KERNEL = whole(1, 15)
BLOCKS = whole(0, 20)
DROPOUT = real(0, 0.95)
NORM = named(
    one_of("instance", "group", "batch"),  # batch norm is refused with words of its own
    {"affine": flag, "eps": real(1e-8, 0.1), "num_groups": WIDTH},
)
ACTIVATION = named(
    one_of("elu", "relu", "leakyrelu", "prelu", "relu6", "selu", "celu", "gelu", "swish", "mish"),
    {"inplace": flag, "negative_slope": real(0, 1), "alpha": real(0, 10)},
)
UPSAMPLE = one_of("deconv", "nontrainable", "pixelshuffle")
VOLUMES = {"spatial_dims": whole(3, 3)}
PER_AXIS = listed(either(KERNEL, listed(KERNEL, 3)))
STEPS = listed(either(STEP, listed(STEP, 3)))

NETWORKS: Final[Mapping[str, Mapping[str, Rule]]] = {
    "unetr": {
        "feature_size": whole(1, 256),
        "hidden_size": whole(1, 2048),
        "mlp_dim": whole(1, 8192),
        "num_heads": whole(1, 64),
        "proj_type": one_of("conv", "perceptron"),
        "norm_name": NORM,
        "conv_block": flag,
        "res_block": flag,
        "dropout_rate": DROPOUT,
        "qkv_bias": flag,
    },
    "UNet": VOLUMES
    | {
        "channels": listed(WIDTH),
        "strides": STEPS,
        "kernel_size": either(KERNEL, listed(KERNEL, 3)),
        "up_kernel_size": either(KERNEL, listed(KERNEL, 3)),
        "num_res_units": BLOCKS,
        "act": ACTIVATION,
        "norm": NORM,
        "dropout": DROPOUT,
        "bias": flag,
        "adn_ordering": one_of("nda", "na", "dna", "dan", "nad", "and", "adn", "an"),
    },
    "BasicUNet": VOLUMES
    | {
        "features": listed(WIDTH, 6),
        "act": ACTIVATION,
        "norm": NORM,
        "bias": flag,
        "dropout": DROPOUT,
        "upsample": UPSAMPLE,
    },
    "DynUNet": VOLUMES
    | {
        "kernel_size": PER_AXIS,
        "strides": STEPS,
        "upsample_kernel_size": STEPS,
        "filters": listed(WIDTH),
        "dropout": DROPOUT,
        "norm_name": NORM,
        "act_name": ACTIVATION,
        "deep_supervision": flag,
        "deep_supr_num": whole(1, DEEPEST),
        "res_block": flag,
        "trans_bias": flag,
    },
    "SegResNet": VOLUMES
    | {
        "init_filters": whole(1, 512),
        "dropout_prob": DROPOUT,
        "act": ACTIVATION,
        "norm": NORM,
        "num_groups": WIDTH,
        "use_conv_final": flag,
        "blocks_down": listed(BLOCKS),
        "blocks_up": listed(BLOCKS),
        "upsample_mode": UPSAMPLE,
    },
    "SegResNetDS": VOLUMES
    | {
        "init_filters": whole(1, 512),
        "act": ACTIVATION,
        "norm": NORM,
        "blocks_down": listed(BLOCKS),
        "blocks_up": listed(BLOCKS),
        "dsdepth": whole(1, 1),
        "upsample_mode": UPSAMPLE,
    },
    "SwinUNETR": VOLUMES
    | {
        "patch_size": whole(2, 8),
        "depths": listed(whole(1, 24), 4),
        "num_heads": listed(whole(1, 64), 4),
        # Its index tables take 8 bytes times the sixth power of it, a block.
        "window_size": either(whole(2, 8), listed(whole(2, 8), 3)),
        "qkv_bias": flag,
        "mlp_ratio": real(0.5, 8),
        "feature_size": whole(12, 192),
        "norm_name": NORM,
        "drop_rate": DROPOUT,
        "attn_drop_rate": DROPOUT,
        "dropout_path_rate": DROPOUT,
        "normalize": flag,
        "patch_norm": flag,
        "use_v2": flag,
    },
    "HighResNet": VOLUMES
    | {
        "norm_type": NORM,
        "acti_type": ACTIVATION,
        "dropout_prob": DROPOUT,
        "bias": flag,
    },
}


def require_allowed(name: str, args: Mapping[str, Any]) -> None:
    """Requires a network of this list, and arguments that it may be given.

    Args:
        name: of the plan's `model`.
        args: the same; `res3dunet` takes none and says so itself.

    Raises:
        UserError: names the network, or the argument, its value and what it may be.
    """
    if name.lower() == "res3dunet":
        return
    rules = NETWORKS.get("unetr" if name.lower() == "unetr" else name)
    if rules is None:
        known = ["res3dunet", *NETWORKS]
        folded = {n.lower(): n for n in known}
        near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(folded[n] for n in near)}?" if near else ""
        raise UserError(
            "model.name",
            shown(name, 100),
            f"use a segmentation network of this list: {', '.join(known)}{hint}",
        )
    for key, value in args.items():
        if key not in rules:
            raise UserError(
                f"model.args.{shown(key, 100)}",
                shown(value, 100),
                f"give arguments of {name} that are allowed: {', '.join(rules)}",
            )
        if found := rules[key](value):
            raise UserError(f"model.args.{key}", shown(value, 100), f"give {found}")
