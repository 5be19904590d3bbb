from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from core.errors import UserError
from hnfed.deploy.provision import FLEET, Federation, provision, read_federation
from hnfed.guard.kit import SERVER, read_kit

HN = Federation("hn", "fed.example.org", 28443, 28444, ("nyu", "miccai"), 365)


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_kits(tmp_path: Path) -> None:
    done = provision(HN, tmp_path)
    assert len(done) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"ca", "server", "nyu", "miccai"}
    for key in tmp_path.rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0, key
    assert tmp_path.stat().st_mode & 0o077 == 0
    kit = read_kit(tmp_path / "nyu", "site")
    assert (kit.role, kit.host, kit.port) == ("nyu", "fed.example.org", 28443)
    roster = json.loads((tmp_path / "server" / "roster.json").read_text())
    assert roster["nyu"] == (tmp_path / "nyu" / "node.pub").read_text().strip()
    private = serialization.load_ssh_private_key((tmp_path / "nyu" / "node.key").read_bytes(), None)
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert public.decode() == roster["nyu"]
    assert not list((tmp_path / "nyu").glob("server*")), "no key of the server in a site's kit"
    for name in ("server", "nyu"):
        check = subprocess.run(
            ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / name, capture_output=True, check=False
        )
        assert check.returncode == 0


def test_the_certificate_holds_for_the_names_that_sites_dial(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / "server" / "server.crt").read_bytes())
    ca = x509.load_pem_x509_certificate((tmp_path / "ca" / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fed.example.org" in names.get_values_for_type(x509.DNSName)
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    context = ssl.create_default_context(cafile=str(tmp_path / "nyu" / "ca.crt"))
    assert context.cert_store_stats()["x509_ca"] == 1


def test_again_changes_nothing(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    (tmp_path / "nyu" / "policy.yaml").write_text("scores: false\n")
    before = content(tmp_path)
    assert provision(HN, tmp_path) == []
    assert content(tmp_path) == before


def test_a_certificate_that_ends_soon_or_has_other_names_is_made_anew(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    keys = content(tmp_path / "nyu")
    later = datetime.now(UTC) + timedelta(days=350)
    assert [line.partition(":")[0] for line in provision(HN, tmp_path, now=later)] == [
        "server", "nyu", "miccai"]  # fmt: skip
    moved = Federation("hn", "10.1.2.3", 28443, 28444, HN.sites, 365)
    assert "10.1.2.3" in provision(moved, tmp_path)[0]
    assert content(tmp_path / "nyu")["node.key"] == keys["node.key"]


def test_sites_come_and_go(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    provision(HN, tmp_path, add=["third"])
    assert "third" in json.loads((tmp_path / "server" / "roster.json").read_text())
    old = (tmp_path / "nyu" / "node.pub").read_text()
    provision(HN, tmp_path, revoke=["nyu"])
    assert set(json.loads((tmp_path / "server" / "roster.json").read_text())) == {"miccai", "third"}
    assert not (tmp_path / "nyu").exists()
    provision(HN, tmp_path)
    assert not (tmp_path / "nyu").exists(), "revoked, though the file still lists it"
    provision(HN, tmp_path, add=["nyu"])
    assert (tmp_path / "nyu" / "node.pub").read_text() != old, "back with a new key"
    with pytest.raises(UserError, match="--revoke"):
        provision(HN, tmp_path, revoke=["nobody"])


def test_a_kit_that_was_handed_over_keeps_its_key(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    before = json.loads((tmp_path / "server" / "roster.json").read_text())
    shutil.rmtree(tmp_path / "nyu")
    (tmp_path / "miccai" / "node.key").unlink()
    later = datetime.now(UTC) + timedelta(days=350)
    lines = provision(HN, tmp_path, add=["third"], now=later)
    assert "nyu: handed over before; its key stays" in lines
    assert "miccai: handed over before; its key stays" in lines
    assert not (tmp_path / "nyu").exists()
    after = json.loads((tmp_path / "server" / "roster.json").read_text())
    assert {name: after[name] for name in before} == before
    lines = provision(HN, tmp_path, add=["nyu"])
    assert any("nyu: its key is a new one" in line for line in lines)
    new = json.loads((tmp_path / "server" / "roster.json").read_text())
    assert new["nyu"] != before["nyu"]
    assert new["nyu"] == (tmp_path / "nyu" / "node.pub").read_text().strip()
    assert new["miccai"] == before["miccai"]
    lines = provision(HN, tmp_path, add=["nyu"])
    assert "nyu: its kit is here, its key stays; for a new one delete nyu/" in lines
    assert "miccai: handed over before; its key stays" in lines


@pytest.mark.parametrize(("gone", "asked"), [("server", r"roster\.json"), ("ca", r"bring ca\.key")])
def test_what_was_moved_away_is_asked_for_and_not_made_anew(
    tmp_path: Path, gone: str, asked: str
) -> None:
    provision(HN, tmp_path)
    shutil.rmtree(tmp_path / gone)
    before = content(tmp_path)
    with pytest.raises(UserError, match=asked):
        provision(HN, tmp_path)
    assert content(tmp_path) == before


def test_a_site_that_was_handed_over_and_revoked_stays_out_until_it_is_added(
    tmp_path: Path,
) -> None:
    provision(HN, tmp_path)
    shutil.rmtree(tmp_path / "nyu")
    provision(HN, tmp_path, revoke=["nyu"])
    roster = tmp_path / "server" / "roster.json"
    provision(HN, tmp_path)
    assert set(json.loads(roster.read_text())) == {"miccai"}
    assert not (tmp_path / "nyu").exists()
    provision(HN, tmp_path, add=["nyu"])
    assert provision(HN, tmp_path) == []
    assert set(json.loads(roster.read_text())) == {"miccai", "nyu"}, "back for good"


def test_nothing_in_a_kit_names_the_coordinators_folders(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    for name in ("server", "nyu"):
        for path, text in content(tmp_path / name).items():
            assert str(tmp_path).encode() not in text, path


@pytest.mark.parametrize(
    ("role", "unit", "command"),
    [
        ("server", "hnfed-server", "server /etc/hnfed/kit"),
        ("nyu", "hnfed-client", "client /etc/hnfed/kit --site /etc/hnfed/site.yaml"),
    ],
)
def test_units_run_what_the_command_line_knows(
    tmp_path: Path, role: str, unit: str, command: str
) -> None:
    from hnfed.cli.main import _parser

    provision(HN, tmp_path)
    text = (tmp_path / role / f"{unit}.service").read_text()
    lines = dict(line.split("=", 1) for line in text.splitlines() if line[:1].isupper())
    assert lines["User"] == "hnfed"
    program, *words = lines["ExecStart"].split()
    assert program == "/opt/hnfed/.venv/bin/hnfed"
    assert " ".join(words) == command
    assert hasattr(_parser().parse_args(words), "handler")
    assert f"systemctl enable --now {unit}" in text
    readme = (tmp_path / role / "README.md").read_text()
    assert "/etc/hnfed/kit" in readme
    assert f"{unit}.service" in readme


def test_nginx_lets_the_fleet_api_through_and_nothing_else(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    text = (tmp_path / "server" / "nginx.conf").read_text()
    assert "location / { return 403; }" in text
    assert text.count("proxy_pass") == 1 + len(FLEET)
    assert "ssl_verify_client on;" in text
    if program := shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin"):
        kit = shutil.move(tmp_path / "server", tmp_path / "moved")
        (kit / "flower").mkdir()
        done = subprocess.run(
            [program, "-t", "-p", f"{kit}/", "-c", str(kit / "nginx.conf")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name: hn\nsites: [a]\n", "server.host"),
        ("name: HN\nserver: {host: x}\nsites: [a]\n", "name"),
        ("name: hn\nserver: {host: x}\nsites: []\n", "list the sites"),
        ("name: hn\nserver: {host: x}\nsites: [a, a]\n", "each site once"),
        ("name: hn\nserver: {host: x}\nsites: [server]\n", "another name"),
        ("name: hn\nserver: {host: x}\nsites: [../a]\n", "small letters"),
        ("name: hn\nserver: {host: 'x y'}\nsites: [a]\n", "dial"),
        ("name: hn\nserver: {host: x, port: 0}\nsites: [a]\n", "port"),
        ("name: hn\nserver: {host: x, port: 28444}\nsites: [a]\n", "another number"),
        ("name: hn\nhosts: 1\n", "use one of"),
    ],
)
def test_unusable_federation_files(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=word):
        read_federation(tmp_path / "f.yaml")


def test_kits_of_the_wrong_kind(tmp_path: Path) -> None:
    provision(HN, tmp_path)
    with pytest.raises(UserError, match="this kit is for nyu"):
        read_kit(tmp_path / "nyu", SERVER)
    with pytest.raises(UserError, match="this kit is for server"):
        read_kit(tmp_path / "server", "site")
    with pytest.raises(UserError, match="no kit"):
        read_kit(tmp_path, "site")
