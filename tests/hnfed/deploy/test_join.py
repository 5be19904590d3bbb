"""A site joins with a key of its own: what travels is public, and people compare fingerprints."""

from __future__ import annotations

import json
import shutil
import ssl
from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.cli.main import main
from hnfed.deploy.authority import made_request, read_request
from hnfed.deploy.join import own_fingerprint
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.kit import read_kit, read_private_key, ssl_context
from hnfed.guard.peers import SPOKEN, read_peers

FILE = "name: hn\nserver: {host: fed.example.org}\nsites: [nyu, miccai]\nkeys: site\n"


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    (tmp_path / "federation.yaml").write_text(FILE)
    return tmp_path


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def begun(place: Path, site: str) -> Path:
    folder = place / f"at-{site}"
    assert run("join", folder, "--name", site) == 0
    return folder


def signed(place: Path, site: str, folder: Path) -> int:
    return run("provision", place / "federation.yaml", "-o", place / "kits", "--sign",
               folder / "request.pem", "--fingerprint", own_fingerprint(folder))  # fmt: skip


def authority(place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    run("provision", place / "federation.yaml", "-o", place / "kits")
    return capsys.readouterr().out.rpartition("authority ")[2].strip()


def answered(place: Path, site: str, folder: Path, said: str) -> int:
    return run("join", folder, "--answer", place / "kits" / "answers" / f"{site}.json",
               "--authority", said)  # fmt: skip


def test_a_site_joins_and_its_key_never_leaves(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {site: begun(coordinator, site) for site in ("nyu", "miccai")}
    for site, folder in folders.items():
        assert (folder / "node.key").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o077 == 0
        assert signed(coordinator, site, folder) == 0
    said = authority(coordinator, capsys)
    for site, folder in folders.items():
        assert answered(coordinator, site, folder, said) == 0
        kit = read_kit(folder, "site")
        assert (kit.role, kit.host, kit.port) == (site, "fed.example.org", 28443)
        assert ssl_context(kit).verify_mode == ssl.CERT_REQUIRED
        secret = (folder / "node.key").read_bytes().splitlines()[2]
        for path in (coordinator / "kits").rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path
        assert not (folder / "request.pem").exists()
        assert (folder / "policy.yaml").is_file()
    assert not list((coordinator / "kits").rglob("node.key"))
    roster = json.loads((coordinator / "kits" / "server" / "roster.json").read_text())
    assert roster["nyu"] == (folders["nyu"] / "node.pub").read_text().strip()


def test_sites_confirm_each_other(coordinator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {site: begun(coordinator, site) for site in ("nyu", "miccai")}
    for site, folder in folders.items():
        signed(coordinator, site, folder)
    said = authority(coordinator, capsys)
    for site, folder in folders.items():
        answered(coordinator, site, folder, said)
    nyu, theirs = folders["nyu"], own_fingerprint(folders["miccai"])
    assert run("join", nyu) == 0
    assert "NOT confirmed" in capsys.readouterr().out
    assert set(read_peers(read_kit(nyu, "site"))) == {"miccai"}, "not itself"
    for wrong in (theirs[: SPOKEN - 1], "0" * 64, ""):
        assert run("join", nyu, "--confirm", "miccai", wrong) == 1
    assert run("join", nyu, "--confirm", "nobody", theirs) == 1
    assert not read_peers(read_kit(nyu, "site"))["miccai"].confirmed
    read_out = " ".join(theirs[i : i + 4] for i in range(0, SPOKEN, 4)).upper()
    assert run("join", nyu, "--confirm", "miccai", read_out) == 0
    peer = read_peers(read_kit(nyu, "site"))["miccai"]
    assert (peer.confirmed, peer.sha256) == (True, theirs)


def test_a_renewed_certificate_stays_confirmed_and_another_key_does_not(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The coordinator cannot put a key of its own in the place of a confirmed one."""
    folders = {site: begun(coordinator, site) for site in ("nyu", "miccai")}
    for site, folder in folders.items():
        signed(coordinator, site, folder)
    said = authority(coordinator, capsys)
    for site, folder in folders.items():
        answered(coordinator, site, folder, said)
    nyu = folders["nyu"]
    run("join", nyu, "--confirm", "miccai", own_fingerprint(folders["miccai"]))
    certificates = coordinator / "kits" / "server" / "certificates.json"
    certificates.unlink()  # all are made anew, for the same keys
    before = (nyu / "node.crt").read_text()
    authority(coordinator, capsys)
    assert run("join", nyu, "--answer", coordinator / "kits" / "answers" / "nyu.json") == 0
    assert (nyu / "node.crt").read_text() != before
    assert read_peers(read_kit(nyu, "site"))["miccai"].confirmed
    other = begun(coordinator / "elsewhere", "miccai")
    signed(coordinator, "miccai", other)
    capsys.readouterr()
    assert run("join", nyu, "--answer", coordinator / "kits" / "answers" / "nyu.json") == 0
    assert "miccai: its key is ANOTHER one" in capsys.readouterr().out
    assert not read_peers(read_kit(nyu, "site"))["miccai"].confirmed


def test_an_edited_list_of_peers_is_not_believed(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`confirmed` holds for the key whose fingerprint stands beside it, and for no other."""
    provision(Federation("hn", "h", 1, 2, ("nyu", "miccai", "third"), 30), coordinator / "kits")
    kit = read_kit(coordinator / "kits" / "nyu", "site")
    values = json.loads(kit.peers.read_text())
    values["miccai"] |= {"confirmed": True, "certificate": values["third"]["certificate"]}
    kit.peers.write_text(json.dumps(values))
    with pytest.raises(UserError, match="damaged"):
        read_peers(kit)


def test_a_request_is_signed_only_where_its_fingerprint_was_read_out(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(coordinator, "nyu")
    words = ("provision", coordinator / "federation.yaml", "-o", coordinator / "kits", "--sign",
             folder / "request.pem")  # fmt: skip
    for said in ((), ("--fingerprint", "0" * 64), ("--fingerprint", own_fingerprint(folder)[:8])):
        assert run(*words, *said) == 1
        assert not (coordinator / "kits").exists(), "nothing was done"
    assert "not signed" in capsys.readouterr().out


def test_an_answer_of_another_authority_is_not_taken_in(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever changes the mail on its way cannot put a server of his own in the place."""
    folder = begun(coordinator, "nyu")
    signed(coordinator, "nyu", folder)
    said = authority(coordinator, capsys)
    wrong = coordinator / "wrong"
    wrong.mkdir()
    (wrong / "federation.yaml").write_text(FILE)
    signed(wrong, "nyu", folder)
    assert answered(wrong, "nyu", folder, said) == 1
    assert run("join", folder, "--answer", wrong / "kits" / "answers" / "nyu.json") == 1
    assert not (folder / "ca.crt").exists()
    assert answered(coordinator, "nyu", folder, said) == 0
    assert run("join", folder, "--answer", wrong / "kits" / "answers" / "nyu.json") == 1
    assert "ANOTHER authority" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"site": "miccai"}, "another name"),
        ({"site": "../x"}, "names or ports"),
        ({"host": "x y"}, "names or ports"),
        ({"port": "80"}, "names or ports"),
        ({"port": True}, "names or ports"),
        ({"certificate": "x"}, "damaged"),
        ({"certificate": 3}, "damaged"),
        ({"peers": {"../x": "y"}}, "own authority"),
        ({"peers": 3}, "damaged"),
        ({"more": 1}, "no answer"),
    ],
)
def test_damaged_answers_change_nothing(
    coordinator: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], word: str
) -> None:
    folder = begun(coordinator, "nyu")
    signed(coordinator, "nyu", folder)
    said = authority(coordinator, capsys)
    path = coordinator / "kits" / "answers" / "nyu.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = sorted(p.name for p in folder.iterdir())
    assert answered(coordinator, "nyu", folder, said) == 1
    assert word in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == before


def test_an_answer_for_another_key(coordinator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(coordinator, "nyu")
    signed(coordinator, "nyu", folder)
    said = authority(coordinator, capsys)
    shutil.rmtree(folder)
    begun(coordinator, "nyu")
    assert answered(coordinator, "nyu", folder, said) == 1
    assert "another site's key" in capsys.readouterr().err


def test_an_answer_cannot_rename_a_site(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(coordinator, "nyu")
    signed(coordinator, "nyu", folder)
    assert answered(coordinator, "nyu", folder, authority(coordinator, capsys)) == 0
    other = coordinator / "other"
    other.mkdir()
    key = read_private_key(folder / "node.key")
    (other / "request.pem").write_text(made_request("miccai", key))
    run("provision", coordinator / "federation.yaml", "-o", coordinator / "kits", "--sign",
        other / "request.pem", "--fingerprint", own_fingerprint(folder))  # fmt: skip
    assert run("join", folder, "--answer", coordinator / "kits" / "answers" / "miccai.json") == 1
    assert read_kit(folder, "site").role == "nyu"


def test_requests_that_are_none(coordinator: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    path = coordinator / "request.pem"
    for text in ("", "x" * 20_000, "-----BEGIN CERTIFICATE REQUEST-----\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="no certificate request"):
            read_request(path)
    path.write_text(made_request("Jane Doe", ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(UserError, match="name"):
        read_request(path)
    path.write_text(made_request("nyu", ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(UserError, match="P-384"):
        read_request(path)


def test_a_kit_of_before_gets_its_certificate_by_an_answer(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The upgrade: the roster has the keys, so the coordinator signs without asking."""
    kits = coordinator / "kits"
    federation = Federation("hn", "127.0.0.1", 28443, 28444, ("nyu",), 30)
    provision(federation, kits)
    at_site = coordinator / "at-nyu"
    shutil.move(kits / "nyu", at_site)
    for name in ("node.crt", "peers.json"):
        (at_site / name).unlink()
    (kits / "server" / "certificates.json").unlink()
    with pytest.raises(UserError, match="hnfed join"):
        ssl_context(read_kit(at_site, "site"))
    policy = (at_site / "policy.yaml").read_text() + "# mine\n"
    (at_site / "policy.yaml").write_text(policy)
    lines = provision(federation, kits)
    assert any("answers/nyu.json" in line for line in lines)
    assert run("join", at_site, "--answer", kits / "answers" / "nyu.json") == 0
    ssl_context(read_kit(at_site, "site"))
    assert (at_site / "policy.yaml").read_text() == policy


def test_who_joined_first_hears_of_who_joins_later(
    coordinator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums need every other site's certificate: the coordinator is told whom to send it."""
    first, second = begun(coordinator, "nyu"), begun(coordinator, "miccai")
    assert signed(coordinator, "nyu", first) == 0
    assert answered(coordinator, "nyu", first, authority(coordinator, capsys)) == 0
    assert not read_peers(read_kit(first, "site"))
    capsys.readouterr()
    assert signed(coordinator, "miccai", second) == 0
    told = capsys.readouterr().out
    for site in ("nyu", "miccai"):
        assert told.count(f"{site}: send it the new answers/{site}.json") == 1
    assert run("join", first, "--answer", coordinator / "kits" / "answers" / "nyu.json") == 0
    assert set(read_peers(read_kit(first, "site"))) == {"miccai"}
    capsys.readouterr()
    run("provision", coordinator / "federation.yaml", "-o", coordinator / "kits")
    assert "send it" not in capsys.readouterr().out, "nothing is new"


def test_what_cannot_be_joined(coordinator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("join", coordinator / "x") == 1
    assert "--name SITE" in capsys.readouterr().err
    for name in ("server", "ca", "Jane Doe", "../x"):
        assert run("join", coordinator / "x", "--name", name) == 1
    folder = begun(coordinator, "nyu")
    key = (folder / "node.key").read_bytes()
    assert run("join", folder, "--name", "nyu") == 0
    assert (folder / "node.key").read_bytes() == key, "a key is made once"
    assert run("join", folder) == 1
    (folder / "node.key").chmod(0o644)
    assert run("join", folder) == 1
    assert "chmod 600" in capsys.readouterr().err
