"""`hvd certs`: a small certificate authority for the API over TCP. One's own works as well: docs/security.md says what hvd asks of it.

    hvd certs ca DIRECTORY                                   ca.pem, ca.key
    hvd certs server DIRECTORY HOST...                       server.pem, server.key, good for these names and addresses
    hvd certs client DIRECTORY NAME --role ROLE              NAME.pem, NAME.key
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hvd.api.roles import CERTIFICATE_PREFIX, Role
from hvd.errors import HvdError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA, SERVER = "ca", "server"
DEFAULT_DAYS = 825
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Clocks differ.
_BEFORE = datetime.timedelta(minutes=5)


def main(arguments: Sequence[str]) -> int:
    """The command `hvd certs`. Exit status: 0, 1 when it cannot be done, 2 for wrong arguments."""
    parsed = _parser().parse_args(arguments)
    try:
        for path in parsed.work(parsed):
            print(path)
    except HvdError as error:
        print(f"hvd: {error.message}\nhvd: {error.help} [{error.reason}]", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hvd certs", description="A small certificate authority for hvd's API over TCP.")
    verbs = parser.add_subparsers(required=True, metavar="WHAT")
    for name, work, help in (
        (CA, _make_ca, "make the authority: ca.pem goes to everybody, ca.key stays here"),
        (SERVER, _make_server, "the daemon's certificate: --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem"),
        ("client", _make_client, "a client's: HVD_TLS_CA=ca.pem HVD_TLS_CERT=NAME.pem HVD_TLS_KEY=NAME.key"),
    ):
        verb = verbs.add_parser(name, help=help)
        verb.set_defaults(work=work)
        verb.add_argument("directory", type=Path)
        verb.add_argument("--days", type=int, default=DEFAULT_DAYS, help=f"how long it is good (default: {DEFAULT_DAYS})")
        if name == SERVER:
            verb.add_argument("hosts", nargs="+", metavar="HOST", help="a name or an address by which clients reach it")
        elif name == "client":
            verb.add_argument("name", metavar="NAME")
            verb.add_argument("--role", required=True, choices=[role.value for role in Role])
    return parser


def _make_ca(parsed: argparse.Namespace) -> list[Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        parsed.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(parsed.directory, error) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("hvd certificate authority")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = _builder(name, key, parsed.days).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(usage, critical=True)
    return _write(parsed.directory, CA, builder, key, key)


def _make_server(parsed: argparse.Namespace) -> list[Path]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names: list[x509.GeneralName] = []
    for host in parsed.hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError as error:
                raise _wrong("HOST", host, str(error)) from error
    return _issue(parsed, SERVER, parsed.hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH)


def _make_client(parsed: argparse.Namespace) -> list[Path]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not _FILE_NAME.fullmatch(parsed.name) or parsed.name in (CA, SERVER):
        raise _wrong("NAME", parsed.name, "use letters, digits, '.', '_' and '-', and neither ca nor server")
    role = x509.UniformResourceIdentifier(f"{CERTIFICATE_PREFIX}{parsed.role}")
    return _issue(parsed, parsed.name, parsed.name, [role], ExtendedKeyUsageOID.CLIENT_AUTH)


def _issue(
    parsed: argparse.Namespace, file: str, subject: str, names: list[x509.GeneralName], usage: x509.ObjectIdentifier
) -> list[Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        authority = x509.load_pem_x509_certificate((parsed.directory / f"{CA}.pem").read_bytes())
        signer = serialization.load_pem_private_key((parsed.directory / f"{CA}.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise _wrong("DIRECTORY", parsed.directory, f"has no authority ({error}): `hvd certs ca DIRECTORY` makes one") from error
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(subject), key, parsed.days).issuer_name(authority.subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return _write(parsed.directory, file, builder, key, signer)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise _wrong("NAME", text, str(error)) from error


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    if not 1 <= days <= 36500:
        raise _wrong("--days", days, "is no number of days from 1 to 36500")
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _write(
    directory: Path, name: str, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> list[Path]:
    """The key for its owner only, born so. Nothing that is there is overwritten."""
    from cryptography.hazmat.primitives import hashes, serialization

    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(encoding)
    paths = []
    for ending, data, mode in ((".key", private, 0o600), (".pem", certificate, 0o644)):
        path = directory / f"{name}{ending}"
        try:
            with open(path, "xb", opener=lambda file, flags, mode=mode: os.open(file, flags, mode)) as file:  # type: ignore[misc]
                file.write(data)
        except OSError as error:
            raise _unwritable(path, error) from error
        paths.append(path)
    return paths


def _wrong(setting: str, value: object, problem: str) -> HvdError:
    return HvdError("CONFIG_INVALID", setting=setting, value=value, problem=problem, remedy="`hvd certs --help`")


def _unwritable(path: Path, error: OSError) -> HvdError:
    return _wrong("DIRECTORY", path, error.strerror or str(error))
