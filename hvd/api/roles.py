"""Who may do what: each socket (or client certificate) has a role, each method needs a permission.

Tracing and reading memory show what is inside a guest, so they are a permission of their own beside looking at and
operating guests.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from hvd.errors import HvdError


class Permission(enum.StrEnum):
    VIEW = "view"
    OPERATE = "operate"
    TRACE = "trace"
    ADMIN = "admin"


class Role(enum.StrEnum):
    """Least first. The socket of a role is hvd-{role}.sock in the runtime directory, the admin's is hvd.sock."""

    VIEW = "view"
    TRACE = "trace"
    OPERATE = "operate"
    ADMIN = "admin"


GRANTS: dict[Role, frozenset[Permission]] = {
    Role.VIEW: frozenset({Permission.VIEW}),
    Role.TRACE: frozenset({Permission.VIEW, Permission.TRACE}),
    Role.OPERATE: frozenset({Permission.VIEW, Permission.OPERATE}),
    Role.ADMIN: frozenset(Permission),
}
SOCKETS: dict[Role, str] = {
    Role.ADMIN: "hvd.sock",
    Role.OPERATE: "hvd-operate.sock",
    Role.VIEW: "hvd-view.sock",
    Role.TRACE: "hvd-trace.sock",
}
CERTIFICATE_PREFIX = "hvd:role:"

_V, _O, _T, _A = Permission.VIEW, Permission.OPERATE, Permission.TRACE, Permission.ADMIN
# What is not listed needs ADMIN, so that a method nobody thought of is not open to all.
METHODS: dict[str, Permission] = {
    **{f"/hvd.v1.GuestService/{method}": permission for method, permission in {
        "GetGuest": _V, "ListGuests": _V, "WaitGuest": _V, "WatchGuests": _V, "GetLogs": _V,
        "AttachConsole": _V,  # typing needs OPERATE: the service sees to it
        "CreateGuest": _O, "UpdateGuest": _O, "DeleteGuest": _O, "StartGuest": _O, "StopGuest": _O, "KillGuest": _O,
        "PauseGuest": _O, "ResumeGuest": _O, "ResetGuest": _O,
        "GetScreen": _V, "TypeKeys": _O, "ListSnapshots": _V, "SnapshotGuest": _O, "DeleteSnapshot": _O, "RestoreGuest": _O,
        "CloneGuest": _O, "ImportSnapshot": _O,
        "ExecGuest": _O, "CopyIn": _O,
        "CopyOut": _O,  # what is inside a guest; whoever may run programs there can read it anyway
        "ExportSnapshot": _T,  # it holds the guest's memory
    }.items()},
    **{f"/hvd.v1.ImageService/{method}": permission for method, permission in {
        "GetImage": _V, "ListImages": _V, "UploadBlob": _O, "FindBlobs": _O, "DownloadBlob": _O,
        "CreateImage": _O, "DeleteImage": _O, "BuildImage": _O, "PullImage": _O,
    }.items()},
    **{f"/hvd.v1.InspectService/{method}": permission for method, permission in {
        "GetMemoryMap": _V, "ReadMemory": _T, "TranslateAddress": _T, "GetRegisters": _T, "WriteMemory": _A,
        "GetCensus": _V,  # counting needs TRACE: the service sees to it
        "Debug": _A,  # it writes memory and registers
    }.items()},
    **{f"/hvd.v1.TraceService/{method}": permission for method, permission in {
        "ListTracePoints": _V, "SummarizeTrace": _V, "StreamTrace": _T,
        "ListTraces": _V, "GetTrace": _V, "StartTrace": _T, "StopTrace": _T, "DeleteTrace": _T, "ReadTrace": _T,
    }.items()},
    **{f"/hvd.v1.NetworkService/{method}": permission for method, permission in {
        "GetNetwork": _V, "ListNetworks": _V,
        "CreateNetwork": _A, "DeleteNetwork": _A,  # they change the host's network
    }.items()},
    **{f"/hvd.v1.VolumeService/{method}": permission for method, permission in {
        "GetVolume": _V, "ListVolumes": _V, "CreateVolume": _O, "DeleteVolume": _O,
    }.items()},
    "/hvd.v1.MetricsService/GetMetrics": _V,
    "/hvd.v1.MetricsService/WatchStats": _V,
    "/hvd.v1.SystemService/GetInfo": _V,
    "/hvd.v1.SystemService/ListBackends": _V,
    "/grpc.health.v1.Health/Check": _V,
    "/grpc.health.v1.Health/Watch": _V,
    "/grpc.health.v1.Health/List": _V,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _V,
}  # fmt: skip


def permission_of(method: str) -> Permission:
    return METHODS.get(method, Permission.ADMIN)


def forbidden(role: Role, permission: Permission, method: str) -> HvdError:
    needed = [str(other) for other, grants in GRANTS.items() if permission in grants]
    return HvdError("ROLE_FORBIDDEN", role=role, method=method.rpartition("/")[2], needed=" or ".join(needed))


def role_of_certificate(auth_context: Mapping[str, Iterable[bytes]]) -> Role:
    """The role among a client certificate's alternative names (URI hvd:role:ROLE); VIEW without a known one, the least
    of several.
    """
    names = (name.decode("utf-8", "replace") for name in auth_context.get("x509_subject_alternative_name", ()))
    found = {name.removeprefix(CERTIFICATE_PREFIX) for name in names if name.startswith(CERTIFICATE_PREFIX)}
    return next((role for role in Role if role.value in found), Role.VIEW)


def name_of_certificate(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """Its common name; empty without one."""
    return b" ".join(auth_context.get("x509_common_name", ())).decode("utf-8", "replace")[:100]
