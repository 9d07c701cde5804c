"""Every error that the API can answer with: the one table, from which messages, gRPC codes, docs and tests are made.

Anything below the API raises HvdError(reason, **metadata); hvd/api/errors.py turns it into a google.rpc.Status with ErrorInfo
(AIP-193). Every variable part of a message is in the metadata. A message ends with what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "hvd"


@dataclass(frozen=True, slots=True)
class Reason:
    code: str  # name of the gRPC status code
    message: str  # str.format template over the metadata
    help: str = ""  # the next step, a template too


REASONS: dict[str, Reason] = {
    # names and requests
    "NAME_INVALID": Reason("INVALID_ARGUMENT", "'{name}' is no valid {what} name",
                           "use 1-63 of a-z, 0-9 and -, with a letter or digit at both ends"),
    "NAME_TAKEN": Reason("ALREADY_EXISTS", "{what} '{name}' exists already", "choose another name, or delete it first"),
    "GUEST_NOT_FOUND": Reason("NOT_FOUND", "there is no guest '{name}'", "`hvctl list` shows the guests there are"),
    "IMAGE_NOT_FOUND": Reason("NOT_FOUND", "there is no image '{name}'", "`hvctl image list` shows the images there are"),
    "BLOB_NOT_FOUND": Reason("NOT_FOUND", "the daemon has no blob {digest}", "upload it first"),
    "FIELD_INVALID": Reason("INVALID_ARGUMENT", "{field} = {value}: {problem}", "{remedy}"),
    "FIELD_IMMUTABLE": Reason("INVALID_ARGUMENT", "{field} of a guest cannot be changed after its creation",
                              "fields that can: {mutable}"),
    "REQUEST_ID_REUSED": Reason("ALREADY_EXISTS", "request_id {request_id} was used for a different request", "use a new UUID4"),
    "ETAG_MISMATCH": Reason("ABORTED", "guest '{name}' was changed meanwhile", "read it again and repeat"),
    "PAGE_TOKEN_INVALID": Reason("INVALID_ARGUMENT", "page_token '{token}' was not given by this daemon", "begin without it"),
    "RESUME_TOKEN_EXPIRED": Reason("OUT_OF_RANGE", "events since '{token}' are no longer kept", "watch again without a resume_token"),
    "SLOW_READER": Reason("RESOURCE_EXHAUSTED", "the reader fell behind by {pending} {what}", "resume, or read faster"),
    # states
    "GUEST_WRONG_STATE": Reason("FAILED_PRECONDITION", "guest '{name}' is {state}; {verb} needs {needed}", "{remedy}"),
    "GUEST_BUSY": Reason("ABORTED", "{verb} of guest '{name}' is under way", "wait for it and repeat"),
    "CAPABILITY_MISSING": Reason("UNIMPLEMENTED", "backend {backend} cannot {capability}", "`hvctl backends` shows what each can do"),
    "WAIT_TIMED_OUT": Reason("DEADLINE_EXCEEDED", "guest '{name}' is still {state} after {seconds} s", "wait longer"),
    # backends
    "BACKEND_UNKNOWN": Reason("INVALID_ARGUMENT", "there is no backend '{backend}'", "there are: {known}"),
    "BACKEND_UNAVAILABLE": Reason("FAILED_PRECONDITION", "backend {backend} does not run here: {problem}", "{remedy}"),
    "ENGINE_UNKNOWN": Reason("INVALID_ARGUMENT", "backend {backend} has no engine '{engine}'", "it has: {known}"),
    "NO_BACKEND_FITS": Reason("FAILED_PRECONDITION", "no backend here can run this guest: {problems}", "`hvctl doctor` says what would help"),
    # images and kernels
    "KERNEL_MISSING": Reason("INVALID_ARGUMENT", "the guest has neither a kernel nor an image with one",
                             "give --kernel or --image, or a disk to boot from"),
    "IMAGE_KIND": Reason("INVALID_ARGUMENT", "'{name}' is an image of kind {kind}, needed is one of kind {needed}", "{remedy}"),
    "CONTAINER_FAILED": Reason("FAILED_PRECONDITION", "{what} failed: {problem}", "see the guest's log and configuration; `hvctl doctor`"),
    "ARCHIVE_UNSAFE": Reason("INVALID_ARGUMENT", "layer {digest}: {member} {problem}",
                             "such an archive is not unpacked; make it anew, or do not trust it"),
    "ARCHIVE_DAMAGED": Reason("INVALID_ARGUMENT", "layer {digest} cannot be unpacked: {problem}", "it has to be a tar, plain or compressed"),
    "ARCHIVE_TOO_LARGE": Reason("RESOURCE_EXHAUSTED", "layer {digest} is too large: {problem}", "make the image smaller"),
    "COPY_PATH_MISSING": Reason("NOT_FOUND", "there is no {path} in the guest", "`hvctl exec GUEST -- ls` shows what there is"),
    "COPY_REFUSED": Reason("FAILED_PRECONDITION", "{path} in the guest {problem}", "{remedy}"),
    "COPY_ARCHIVE": Reason("INVALID_ARGUMENT", "the archive cannot be unpacked: {problem}",
                           "it has to be a whole tar; compressed with gzip, bzip2 or xz, or not"),
    "COPY_STALLED": Reason("DEADLINE_EXCEEDED", "the copy was given up: {problem}", "repeat it"),
    "LIMIT_UNAVAILABLE": Reason("FAILED_PRECONDITION", "limits.{limit} needs the cgroup controller {controller}, which this host does not have",
                                "leave the limit out, or switch the controller on"),
    "LIMIT_BELOW_USE": Reason("FAILED_PRECONDITION", "limits.{limit} cannot be {value}: {used} is in use and cannot be taken back",
                              "let the guest use less, or give it more"),
    "LIMIT_REFUSED": Reason("FAILED_PRECONDITION", "the kernel refuses limits.{limit}: {problem}", "use another value"),
    "LAYER_MISSING": Reason("FAILED_PRECONDITION", "layer {digest} of the image is not unpacked here", "import or pull the image again"),
    "PATH_REFUSED": Reason("PERMISSION_DENIED", "{path} is not below a directory that the daemon lets clients name ({allowed})",
                           "the daemon's setting image-dirs says which; or use a volume"),
    "PATH_CLOSED": Reason("FAILED_PRECONDITION", "{path} is closed to the users that a container's users are on the host",
                          "`chmod o+x {path}`, or give the daemon another --state-dir"),
    "PATH_MISSING": Reason("INVALID_ARGUMENT", "{path} does not exist on the daemon's host", "make it first"),
    "IMAGE_FORMAT": Reason("INVALID_ARGUMENT", "{what} has no format that this board can load: {problem}",
                           "it loads Linux bzImage, PVH and Multiboot 1 ELF, and flat binaries"),
    "IMAGE_TRUNCATED": Reason("INVALID_ARGUMENT", "{what} ends at byte {length}, but needs {needed}", "fetch or build it again"),
    "IMAGE_TOO_LARGE": Reason("INVALID_ARGUMENT", "{what} needs {needed} bytes of guest memory, there are {available}",
                              "give the guest more --memory"),
    "IMAGE_LAYOUT": Reason("INVALID_ARGUMENT", "{what}: {problem}", "fix the file's program headers"),
    "FIRMWARE_MISSING": Reason("FAILED_PRECONDITION", "the firmware {file} is not in {directories}: {problem}",
                               "`sudo apt-get install seabios` on the daemon's machine"),
    "FIRMWARE_DAMAGED": Reason("FAILED_PRECONDITION", "the firmware {path} is damaged: {problem}",
                               "`sudo apt-get install --reinstall seabios` on the daemon's machine"),
    "IMAGE_IN_USE": Reason("FAILED_PRECONDITION", "image '{name}' is used by {guests}", "delete those first"),
    "IMAGE_EMPTY": Reason("INVALID_ARGUMENT", "the file of a {kind} has 0 bytes", "check which file that is; a blank disk is --disk size=1G"),
    "IMAGE_NOT_RAW": Reason("INVALID_ARGUMENT", "the file of a {kind} is in format {format}; a disk's image is raw",
                            "`qemu-img convert -O raw FILE NEW`, and import NEW: holes cost nothing"),
    "IMAGE_CONTENT": Reason("INVALID_ARGUMENT", "the file is no {kind}: {problem}", "{remedy}"),
    # registries
    "REFERENCE_INVALID": Reason("INVALID_ARGUMENT", "'{reference}' names no image of a registry: {problem}",
                                "write HOST[:PORT]/REPOSITORY:TAG, or REPOSITORY:TAG for docker.io"),
    "REGISTRY_UNREACHABLE": Reason("UNAVAILABLE", "registry {registry} cannot be spoken to: {problem}",
                                   "check its name and the network; --insecure if it speaks plain HTTP; the daemon's setting registry-ca "
                                   "trusts further certificate authorities"),
    "REGISTRY_STALLED": Reason("UNAVAILABLE", "registry {registry} does not go on: {problem}",
                               "repeat: what has come completely is kept"),
    "REGISTRY_DENIED": Reason("PERMISSION_DENIED", "registry {registry} does not let the daemon read {repository}: {problem}",
                              "check repository and tag; logins are in the file of the daemon's setting registry-auth-file"),
    "REGISTRY_ANSWER": Reason("FAILED_PRECONDITION", "registry {registry} answers with {problem}", "is it a registry?"),
    "REGISTRY_CONTENT": Reason("DATA_LOSS", "registry {registry} sent {what} damaged: {problem}",
                               "nothing of it is kept; repeat, and do not trust it if that happens again"),
    "MANIFEST_NOT_FOUND": Reason("NOT_FOUND", "registry {registry} does not have {what}", "check repository and tag"),
    "MANIFEST_INVALID": Reason("INVALID_ARGUMENT", "{what} is no image for containers: {problem}", "choose another image"),
    "PLATFORM_MISSING": Reason("FAILED_PRECONDITION", "{what} has nothing for linux/amd64, only {known}", "choose another tag"),
    "BLOB_DAMAGED": Reason("DATA_LOSS", "the files of image '{name}' have {found} bytes, they had {size}: somebody changed {path}",
                           "remove that file and import the image's file again, under any name"),
    "DISK_DAMAGED": Reason("DATA_LOSS", "{path} is not what this guest's disk needs: {problem}",
                           "restore a snapshot of the guest, or delete it and make it anew from the image"),
    "DISK_IN_USE": Reason("FAILED_PRECONDITION", "the disk {path} is in use by another process", "end that first"),
    "DISK_UNUSABLE": Reason("FAILED_PRECONDITION", "{disk} cannot be opened: {problem}",
                            "delete the guest and make it anew if the file is lost"),
    "DIGEST_INVALID": Reason("INVALID_ARGUMENT", "'{digest}' is no digest", "digests are sha256: and 64 hex digits"),
    "DIGEST_MISMATCH": Reason("INVALID_ARGUMENT", "the upload has digest {found}, announced was {digest}", "upload it again"),
    "BLOB_SIZE": Reason("INVALID_ARGUMENT", "the upload has {found} bytes, announced were {size}", "upload it again"),
    "BLOB_TOO_LARGE": Reason("INVALID_ARGUMENT", "{size} bytes are more than a blob can have ({most})", "check which file that is"),
    "BUILD_FAILED": Reason("INTERNAL", "building '{recipe}' failed in step {step}: {problem}", "the build's log is {log}"),
    "RECIPE_UNKNOWN": Reason("INVALID_ARGUMENT", "there is no recipe '{recipe}'", "there are: {known}"),
    "ROOT_NEEDED": Reason("FAILED_PRECONDITION", "{what} needs a daemon that runs as root: {problem}",
                          "run hvd as root, or make the files elsewhere and `hvctl image import` them"),
    "TOOL_MISSING": Reason("FAILED_PRECONDITION", "this needs {tools}, which the daemon's machine lacks", "{remedy}"),
    "PACKAGE_NOT_FOUND": Reason("FAILED_PRECONDITION", "apt knows no package {package} for {architecture}",
                                "`sudo apt-get update`, and check that the Debian or Ubuntu archive is among apt's sources"),
    "PACKAGE_FETCH_FAILED": Reason("UNAVAILABLE", "apt could not download {package} {version}: {problem}",
                                   "check the network, `sudo apt-get update`, and repeat"),
    # snapshots
    "SNAPSHOT_NOT_FOUND": Reason("NOT_FOUND", "guest '{guest}' has no snapshot '{name}'", "`hvctl snapshots list` shows the snapshots there are"),
    "SNAPSHOT_FOREIGN": Reason("INVALID_ARGUMENT", "'{name}' is no snapshot: {problem}", "use a file that `hvctl snapshots export` wrote"),
    "SNAPSHOT_DAMAGED": Reason("DATA_LOSS", "snapshot '{name}' is damaged: {problem}", "export it again where it came from, or take another"),
    "SNAPSHOT_VERSION": Reason("FAILED_PRECONDITION", "snapshot '{name}' has format version {found}, this hvd knows up to {known}",
                               "use a newer hvd"),
    "SNAPSHOT_MISMATCH": Reason("FAILED_PRECONDITION", "snapshot '{name}' does not fit: its {what} is {found}, the guest's is {needed}",
                                "restore it into a guest like the one it was taken of; `hvctl clone` makes one"),
    "SNAPSHOT_FAILED": Reason("INTERNAL", "the snapshot could not be written: {problem}", "`hvctl logs` and the daemon's log may say more"),
    "SNAPSHOT_IN_USE": Reason("ABORTED", "snapshot '{name}' is in use by {verb}", "wait for it and repeat"),
    # resources
    "MEMORY_TOO_SMALL": Reason("INVALID_ARGUMENT", "{memory} bytes of guest memory are too few", "the least is {least}"),
    "MEMORY_TOO_LARGE": Reason("RESOURCE_EXHAUSTED", "{memory} bytes of guest memory are more than the host can give ({available})",
                               "give the guest less --memory"),
    "MEMORY_ALIGNMENT": Reason("INVALID_ARGUMENT", "guest memory of {memory} bytes is no multiple of {granule}", "round it"),
    "DISK_FULL": Reason("RESOURCE_EXHAUSTED", "no space left in {directory} (writing {what})", "free some and repeat"),
    "TOO_MANY_FILES": Reason("RESOURCE_EXHAUSTED", "no file descriptors are left for {what}: {problem}",
                             "raise LimitNOFILE= of the daemon's unit (ulimit -n), or let fewer clients watch at once"),
    "TOO_MANY_PROCESSES": Reason("RESOURCE_EXHAUSTED", "the host makes no more processes for hvd: {problem}",
                                 "raise TasksMax= of the daemon's unit (ulimit -u), or stop guests"),
    "HOST_MEMORY_FULL": Reason("RESOURCE_EXHAUSTED", "the host has no memory for {what}: {problem}", "stop guests, or give them less --memory"),
    "HOST_IO_ERROR": Reason("INTERNAL", "the host cannot read or write {what}: {problem}",
                            "see the host's own log about that disk; guests that run go on"),
    "TOO_MANY_GUESTS": Reason("RESOURCE_EXHAUSTED", "the daemon's limit of {limit} guests is reached", "delete some"),
    # networks
    "NETWORK_NOT_FOUND": Reason("NOT_FOUND", "there is no network '{name}'", "`hvctl network list` shows the networks there are"),
    "NETWORK_IN_USE": Reason("FAILED_PRECONDITION", "network '{name}' is used by {guests}", "delete those first"),
    "NETWORK_UNAVAILABLE": Reason("FAILED_PRECONDITION", "network '{network}' cannot be had here: {problem}", "{remedy}"),
    "SUBNET_OVERLAP": Reason("FAILED_PRECONDITION", "subnet {subnet} overlaps {other}", "choose another --subnet, or leave it out"),
    "SUBNETS_EXHAUSTED": Reason("RESOURCE_EXHAUSTED", "no subnet of the pool {pool} is free", "give a --subnet, or set another --network-pool"),
    "SUBNET_FULL": Reason("RESOURCE_EXHAUSTED", "network '{network}' ({subnet}) has no free address", "delete guests, or use another network"),
    "MAC_TAKEN": Reason("ALREADY_EXISTS", "MAC address {mac} is that of guest '{guest}' on the same network", "leave it out, or give another"),
    "ADDRESS_TAKEN": Reason("ALREADY_EXISTS", "address {address} is that of guest '{guest}'", "leave it out, or give another"),
    "PORT_TAKEN": Reason("ALREADY_EXISTS", "port {port}/{protocol} of {address} is taken by {owner}",
                         "publish another, or none: a free one is chosen"),
    "MOUNT_FAILED": Reason("FAILED_PRECONDITION", "{source} cannot be mounted into the container: {problem}",
                           "use a volume or another folder; --host-userns needs no id-mapped mounts, but is not safe"),
    "LINK_FAILED": Reason("INTERNAL", "{what} failed: {problem}", "`ip -d link` shows the host's interfaces"),
    "FILTER_FAILED": Reason("INTERNAL", "the host's packet filter could not be set: {problem}", "`nft list ruleset` shows what it holds"),
    "VOLUME_NOT_FOUND": Reason("NOT_FOUND", "there is no volume '{name}'", "`hvctl volume list` shows the volumes there are"),
    "VOLUME_IN_USE": Reason("FAILED_PRECONDITION", "volume '{name}' is used by {guests}", "delete those first"),
    # inspection
    "ADDRESS_OUTSIDE": Reason("OUT_OF_RANGE", "{length} bytes at {address} are not within the guest's memory", "`hvctl mem map` shows the regions"),
    "ADDRESS_UNMAPPED": Reason("FAILED_PRECONDITION", "guest-virtual {address} is not mapped: {problem}",
                               "`hvctl mem translate` shows the page tables"),
    # screen and keyboard
    "KEYBOARD_FULL": Reason("DEADLINE_EXCEEDED",
                            "the guest's keyboard took {events} of {wanted} key presses and releases, then none for {seconds} s",
                            "the guest does not read its keyboard: `hvctl screen` shows what it does, `hvctl list` whether it is paused"),
    "DEBUGGER_ATTACHED": Reason("FAILED_PRECONDITION", "a debugger is attached to guest '{name}': {problem}", "{remedy}"),
    # runners
    "RUNNER_START_FAILED": Reason("INTERNAL", "the guest's runner did not start: {problem}", "see {log}"),
    "RUNNER_PROTOCOL": Reason("FAILED_PRECONDITION", "the guest's runner speaks versions {theirs} of the runner's protocol, this hvd {ours}",
                              "start the hvd that started it, or end the guest: `hvctl kill`, then `hvctl start`"),
    "RUNNER_GONE": Reason("UNAVAILABLE", "the guest's runner is gone: {problem}", "`hvctl show` says how it ended"),
    "RUNNER_TIMEOUT": Reason("DEADLINE_EXCEEDED", "the guest's runner did not answer {call} within {seconds} s", "`hvctl kill` ends it"),
    "COUNTERS_UNREADABLE": Reason("UNAVAILABLE", "the guest's counters cannot be read: {problem}", "`hvctl show` says whether it runs"),
    "NATIVE_MISSING": Reason("FAILED_PRECONDITION", "the C part {path} does not load: {problem}", "build it with `make setup`"),
    "TRACE_UNAVAILABLE": Reason("UNAVAILABLE", "this guest cannot be traced: {problem}", "{remedy}"),
    "TRACE_NOT_FOUND": Reason("NOT_FOUND", "there is no trace session '{name}'", "`hvctl trace list` shows the sessions there are"),
    "TRACE_FILE_DAMAGED": Reason("DATA_LOSS", "{path} is no trace file, or damaged", "delete the session; nothing behind the damage can be read"),
    "TOO_MANY_TRACES": Reason("RESOURCE_EXHAUSTED", "{limit} trace sessions are under way, the most there can be", "`hvctl trace stop` some"),
    "TRACE_UNREADABLE": Reason("UNAVAILABLE", "the guest's trace ring cannot be read: {problem}", "start the guest again"),
    "REQUEST_INVALID": Reason("INVALID_ARGUMENT", "{problem}", "{remedy}"),
    "MESSAGE_TOO_LARGE": Reason("RESOURCE_EXHAUSTED", "a message to {method} has {size} bytes, the most is {most}", "send less at a time"),
    "RATE_LIMITED": Reason("RESOURCE_EXHAUSTED", "{client} makes more than {rate} calls a second",
                           "repeat in {retry_seconds} s; the daemon's setting call-rate says how many are too many"),
    "TOO_MANY_CALLS": Reason("RESOURCE_EXHAUSTED", "{client} has {limit} calls under way",
                             "end some and repeat in {retry_seconds} s; the daemon's setting max-calls says how many there may be"),
    "ROLE_FORBIDDEN": Reason("PERMISSION_DENIED", "role {role} may not {method}", "use a socket or a certificate of role {needed}"),
    # start of the daemon
    "CONFIG_INVALID": Reason("INVALID_ARGUMENT", "setting {setting} = {value}: {problem}", "{remedy}"),
    "DIRECTORY_IN_USE": Reason("FAILED_PRECONDITION", "another hvd (process {holder}) uses {directory}",
                               "stop it, or give this one its own --state-dir and --runtime-dir"),
    "DIRECTORY_UNUSABLE": Reason("FAILED_PRECONDITION", "{directory} cannot be used: {problem}",
                                 "make it writable for this user, or choose others with --state-dir and --runtime-dir"),
    "ENDPOINT_IN_USE": Reason("FAILED_PRECONDITION", "another daemon listens on {endpoint}", "stop it, or choose another --listen"),
    "ENDPOINT_UNUSABLE": Reason("FAILED_PRECONDITION", "cannot listen on {endpoint}: {problem}", "{remedy}"),
    "STORE_DAMAGED": Reason("DATA_LOSS", "the store {path} is damaged: {problem}",
                            "`hvd store restore` puts a backup in its place; or move it away and start hvd again: guests that run are "
                            "adopted without it"),
    "STORE_VERSION": Reason("FAILED_PRECONDITION", "the store {path} has version {found}, this hvd knows {known}",
                            "use a newer hvd, or the copy that its update left beside the file, if it did: {path}.version-{known}"),
    "STORE_FOREIGN": Reason("FAILED_PRECONDITION", "{path} is a database, but not {what} of hvd (it has the tables {tables})",
                            "give hvd another --state-dir, or move the file away; it was not touched"),
    "STORE_LOCKED": Reason("UNAVAILABLE", "the store {path} is held by another process: {problem}",
                           "`fuser -v {path}` says which; end it and repeat"),
    "STORE_FAILED": Reason("INTERNAL", "the store {path} cannot be used: {problem}",
                           "see the host's own log about that disk; guests go on meanwhile, and `hvd store check` tells what is left"),
    "STORE_BACKUP": Reason("FAILED_PRECONDITION", "{what}: {problem}", "{remedy}"),
    # the daemon itself
    "SHUTTING_DOWN": Reason("UNAVAILABLE", "the daemon is shutting down", "repeat when it is back"),
    "INTERNAL": Reason("INTERNAL", "internal error: {problem}", "this is a bug; the daemon's log has the traceback"),
}  # fmt: skip


class HvdError(Exception):
    """An error with a stable reason from REASONS; metadata holds every variable part."""

    def __init__(self, reason: str, **metadata: object) -> None:
        entry = REASONS[reason]
        self.reason = reason
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}
        self.message = entry.message.format(**self.metadata)
        self.help = entry.help.format(**self.metadata)
        super().__init__(f"{self.message}; {self.help}" if self.help else self.message)

    @property
    def code(self) -> str:
        """Name of the gRPC status code."""
        return REASONS[self.reason].code
