"""HvctlError: whatever went wrong between the caller and the guest, with a stable reason.

The daemon's reasons travel in google.rpc.ErrorInfo (AIP-193). Those below are the client's own, for what the daemon
cannot say because it was not reached or not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import grpc

    from hvctl.sdk.endpoint import Endpoint


class _Reason(NamedTuple):
    code: str  # name of the gRPC status code it is nearest to
    message: str  # str.format template over the metadata
    help: str


CLIENT_REASONS: dict[str, _Reason] = {
    "DAEMON_UNREACHABLE": _Reason("UNAVAILABLE", "cannot reach the daemon at {endpoint}: {problem}", "{remedy}"),
    "SOCKET_FORBIDDEN": _Reason(
        "PERMISSION_DENIED",
        "you may not use the daemon's socket {path}",
        "join the group that owns it, use one of the other sockets next to it, or become root",
    ),
    "ENDPOINT_INVALID": _Reason(
        "INVALID_ARGUMENT", "'{endpoint}' is no endpoint", "use unix:///path/to/hvd.sock or host:port"
    ),
    "TLS_FILES_MISSING": _Reason(
        "UNAUTHENTICATED",
        "{endpoint} is spoken to over mutual TLS only, and {missing} is not set",
        "name PEM files with --tls-ca, --tls-cert and --tls-key or HVD_TLS_CA, HVD_TLS_CERT and HVD_TLS_KEY, or use a unix socket",
    ),
    "FILE_UNREADABLE": _Reason(
        "INVALID_ARGUMENT", "cannot read {path}: {problem}", "check the path and its permissions"
    ),
    "FILE_TOO_LARGE": _Reason(
        "INVALID_ARGUMENT",
        "{path} has {size} bytes; such a file has at most {most}",
        "check which file that is",
    ),
    "FILE_EMPTY": _Reason("INVALID_ARGUMENT", "{path} has 0 bytes", "check which file that is"),
    "LAYOUT_INVALID": _Reason(
        "INVALID_ARGUMENT", "{path} is no image in layers that can be taken: {problem}", "export it anew"
    ),
    "FILE_KIND_UNKNOWN": _Reason(
        "INVALID_ARGUMENT",
        "cannot tell what {path} is: {problem}",
        "say it: --kind kernel, initrd, disk, cdrom or rootfs",
    ),
    "DISK_NOT_RAW": _Reason(
        "INVALID_ARGUMENT",
        "{path} is a disk in format {format}; an image of hvd is raw",
        "`qemu-img convert -O raw {path} {path}.raw`, and import that: holes cost nothing",
    ),
    "PROGRAM_MISSING": _Reason(
        "FAILED_PRECONDITION", "this needs the program {program}, which is not here", "install the package {package}"
    ),
    "PROGRAM_FAILED": _Reason("INTERNAL", "{program} failed: {problem}", "{remedy}"),
    "FILE_UNWRITABLE": _Reason(
        "FAILED_PRECONDITION", "cannot write {path}: {problem}", "check the path, its permissions and the space left"
    ),
    "COMPARISON_INVALID": _Reason(
        "INVALID_ARGUMENT", "{path} is no comparison: {problem}", "give what `hvctl compare -o json` printed"
    ),
    "COPY_TARGET": _Reason("FAILED_PRECONDITION", "{path} {problem}", "{remedy}"),
    "COPY_UNSAFE": _Reason(
        "DATA_LOSS", "the archive that the guest sent {problem}", "what came before is there; do not trust that guest"
    ),
    "FONT_MISSING": _Reason(
        "FAILED_PRECONDITION",
        "a picture needs the font of a VGA BIOS, and there is none in {places}",
        "install Debian's package {package}, or look at the text: `hvctl screen GUEST`",
    ),
    "GUEST_PROGRAM_MISSING": _Reason(
        "FAILED_PRECONDITION", "there is no {program} in {folder}", "`make guests` in hvd's sources, and --guests FOLDER if they are elsewhere"
    ),
    "GDB_MISSING": _Reason(
        "FAILED_PRECONDITION",
        "there is no {program} on this machine",
        "`apt-get install gdb`, or let another front end connect: --stdio or --port HOST:PORT",
    ),
    "PORT_UNUSABLE": _Reason("INVALID_ARGUMENT", "cannot listen on {address}: {problem}", "choose another --port"),
    "NO_PICTURE": _Reason(
        "FAILED_PRECONDITION", "there is no picture to save: {problem}", "try again when it shows text"
    ),
    "TEXT_INVALID": _Reason("INVALID_ARGUMENT", "{text} is no valid UTF-8", "write it in UTF-8"),
    "TIMED_OUT": _Reason(
        "DEADLINE_EXCEEDED", "no answer to {call} in time", "repeat it, with a longer --timeout if it needs one"
    ),
    "TRACE_BLOCK_INVALID": _Reason(
        "DATA_LOSS",
        "the trace stream is damaged: {problem}",
        "client and daemon may differ in version: `hvctl version --daemon`",
    ),
    "TRACE_FILE_INVALID": _Reason("DATA_LOSS", "{path}: {problem}", "what stands before that was read; `-o records` writes such files"),
    "CALL_UNKNOWN": _Reason(
        "UNIMPLEMENTED", "this daemon does not know {call}", "`hvctl version --daemon` compares; update the older one"
    ),
    "NOT_EXPLAINED": _Reason("UNKNOWN", "{problem}", "the daemon's log may say more"),
}


class HvctlError(Exception):
    """code: name of the gRPC status ("NOT_FOUND"); reason: stable, UPPER_SNAKE ("GUEST_NOT_FOUND"); metadata: every
    variable part of the message; message: what is wrong; help: what to do next, may be empty."""

    def __init__(self, code: str, reason: str, metadata: Mapping[str, str], message: str, help: str = "") -> None:
        super().__init__(f"{message}; {help}" if help else message)
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata)
        self.message = message
        self.help = help

    @classmethod
    def local(cls, reason: str, **metadata: object) -> HvctlError:
        """One of CLIENT_REASONS."""
        entry = CLIENT_REASONS[reason]
        words = {key: str(value) for key, value in metadata.items()}
        return cls(entry.code, reason, words, entry.message.format(**words), entry.help.format(**words))

    def document(self) -> dict[str, Any]:
        """The error as `hvctl -o json` prints it."""
        return {
            "error": {
                "code": self.code,
                "reason": self.reason,
                "metadata": self.metadata,
                "message": self.message,
                "help": self.help,
            }
        }


def from_rpc(error: grpc.RpcError, endpoint: Endpoint, call: str) -> HvctlError:
    """Reads google.rpc.Status out of a failed call; call is its name, for messages."""
    code = error.code().name
    details = error.details() or ""
    explained = _explained(error, code, details)
    if explained is not None:
        return explained
    if code == "UNAVAILABLE":
        return endpoint.diagnose(details)
    if code == "DEADLINE_EXCEEDED":
        return HvctlError.local("TIMED_OUT", call=call)
    if code == "UNIMPLEMENTED":
        return HvctlError.local("CALL_UNKNOWN", call=call)
    fallback = HvctlError.local("NOT_EXPLAINED", problem=f"{call}: {details or code}")
    fallback.code = code
    return fallback


def _explained(error: grpc.RpcError, code: str, details: str) -> HvctlError | None:
    """The daemon's own words, None when it said nothing (or something between it and us failed)."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the trailer contradicts the status: not ours
        return None
    if status is None:
        return None
    info = error_details_pb2.ErrorInfo()
    links = error_details_pb2.Help()
    found = False
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found = detail.Unpack(info)
        elif detail.Is(error_details_pb2.Help.DESCRIPTOR):
            detail.Unpack(links)
    if not found:
        return None
    next_step = links.links[0].description if links.links else ""
    message = status.message or details
    if next_step:
        # The status message carries the next step too, for clients that read nothing else.
        message = message.removesuffix(next_step).rstrip(" ;")
    return HvctlError(code, info.reason, info.metadata, message, next_step)
