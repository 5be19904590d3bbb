"""Which way a site's connection takes to the server: straight, or through the clinic's proxy.

One answer for whoever dials: the node, and `hnfed doctor`.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # the stubs lack the second
    getproxies_environment,
    proxy_bypass_environment,
)

from core.errors import UserError
from hnfed.guard.kit import Kit, ssl_context

NONE = "none"
SCHEMES = ("http", "https", "socks5", "socks5h")
URL = re.compile(r"[!-~]{1,500}")
REMEDY = "write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, or none"


def proxy_of(host: str, port: int, setting: str = "") -> str:
    """The proxy by which a server is reached.

    Args:
        host: of the server.
        port: the same.
        setting: ``proxy`` of the site file: a URL; ``none``; or "" for what the environment says
            (HTTPS_PROXY, ALL_PROXY and NO_PROXY, as `curl` reads them).

    Returns:
        A URL, with the credentials that it holds, or "" for the straight way, which this machine's
        own loopback addresses always take.

    Raises:
        UserError: no URL of a proxy, or of a kind that cannot be used here.
    """
    field, url = "site file: proxy", setting
    if setting == NONE or _is_loopback(host):
        return ""
    if not setting:
        found = getproxies_environment()
        if proxy_bypass_environment(f"{host}:{port}", found):
            return ""
        field, url = "HTTPS_PROXY", found.get("https") or found.get("all") or ""
        if url and "://" not in url:
            url = f"http://{url}"
    return require_proxy(url, field) if url else ""


def require_proxy(url: str, field: str) -> str:
    """The URL, if it is one of a proxy that can be used.

    Raises:
        UserError: it is not; names `field`, and shows no password.
    """
    try:
        parts = urlsplit(url)
        good = bool(URL.fullmatch(url)) and bool(parts.hostname) and parts.port is not None
        good = good and parts.path in ("", "/") and not parts.query and not parts.fragment
    except ValueError:
        raise UserError(field, "(not shown)", REMEDY, problem="no URL of a proxy") from None
    if not good or parts.scheme not in SCHEMES:
        raise UserError(field, shown(url), REMEDY, problem="no URL of a proxy")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UserError(
            field, shown(url),
            "take the proxy's HTTP port (CONNECT), or install SOCKS: pip install 'httpx[socks]'",
            problem="SOCKS is not installed here",
        )  # fmt: skip
    return url


def shown(url: str) -> str:
    """A proxy's URL without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url.rpartition("@")[2]


def has_password(url: str) -> bool:
    """Whether credentials stand in the URL."""
    return "@" in url


def http_options(kit: Kit, setting: str = "") -> dict[str, Any]:
    """What `httpx.Client` must be given to reach the federation's server, and nothing else.

    Args:
        kit: a site's.
        setting: ``proxy`` of the site file, see `proxy_of`.

    Raises:
        UserError: the kit's certificate or the proxy cannot be used.
    """
    return {
        "verify": ssl_context(kit),
        "proxy": proxy_of(kit.host, kit.port, setting) or None,
        "trust_env": False,
    }


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
