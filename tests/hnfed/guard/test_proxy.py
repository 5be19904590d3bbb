"""Which way a connection takes: the site file, else the environment; no password on any screen."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from core.errors import UserError
from hnfed.guard.proxy import proxy_of, require_proxy, shown

HOST = "fed.example.org"
VARIABLES = ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HTTP_PROXY")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("environment", "setting", "found"),
    [
        ({}, "", ""),
        ({"HTTPS_PROXY": "http://p:3128"}, "", "http://p:3128"),
        ({"https_proxy": "p:3128"}, "", "http://p:3128"),
        ({"ALL_PROXY": "http://p:3128"}, "", "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, "", ""),
        ({"HTTPS_PROXY": "http://p:3128"}, "none", ""),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://q:8080", "http://q:8080"),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": HOST}, "", ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": ".example.org"}, "", ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": f"{HOST}:443"}, "", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": f"{HOST}:28443"}, "", ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*"}, "", ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "other.org"}, "", "http://p:3128"),
        ({"NO_PROXY": HOST}, "http://q:8080", "http://q:8080"),
    ],
)
def test_the_way(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], setting: str, found: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(HOST, 28443, setting) == found
    for own in ("127.0.0.1", "localhost", "::1"):
        assert proxy_of(own, 28443, setting) == ""


@pytest.mark.parametrize(
    "url",
    [
        "p:3128", "http://", "http://p", "ftp://p:21", "http://u:pw@p:99999", "http://p:3128/x",
        "http://p:3128?x", "http://u:pw@p :1", "http://u:pw@p:1\n", "http://u:pw@[::1:3128",
    ],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UserError, match="no URL of a proxy") as caught:
        require_proxy(url, "site file: proxy")
    assert "pw" not in str(caught.value)


def test_socks_is_used_or_refused_in_clear_words(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "socksio" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=r"SOCKS is not installed here\n.*HTTP port"):
        require_proxy("socks5://u:pw@p:1080", "HTTPS_PROXY")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert require_proxy("socks5h://p:1080", "HTTPS_PROXY") == "socks5h://p:1080"


def test_a_url_is_shown_without_user_and_password() -> None:
    assert shown("http://u:p@ss@host:1") == "http://host:1"
    assert shown("http://host:1") == "http://host:1"
    assert shown("u:p@host:1") == "host:1"
