"""The process that copies, in the container's root: nothing that a path or an archive says can reach beyond that.

    python -m hvd.backends.container.files.helper JSON

JSON: {"init", "uid"} of a running container or {"stopped": ...}, and {"in": [path, place, keep_owners]} with the tar as standard
input, or {"out": [path, follow_link]} with a line of JSON (Giver.info) and the tar as standard output. Its last line on standard error is
JSON: {"entries", "bytes"}, or {"error": REASON, "metadata": {..}} of hvd/errors.py.
"""

from __future__ import annotations

import bz2
import errno
import json
import lzma
import os
import signal
import sys
import tarfile
import zlib
from typing import IO, Any, NoReturn

from hvd.backends.container.files import enter
from hvd.backends.container.files.giving import Giver
from hvd.backends.container.files.taking import Taker
from hvd.errors import HvdError

_PROBLEMS = {
    errno.EROFS: ("is on a read-only file system", "copy to a volume or a tmpfs of the guest"),
    errno.ENOTDIR: ("lies below a file", "name a folder"),
    errno.ELOOP: ("goes round in a circle of links", "name where it should lead"),
    errno.EBUSY: ("is a mount of its own, which cannot be replaced", "write into it: `hvctl exec -i`"),
    errno.ENAMETOOLONG: ("is too long a name", "choose a shorter one"),
}


def take(taker: Taker, source: IO[bytes]) -> None:
    """Told to end (SIGTERM), it puts away what is half done and ends at once. Not by an exception: that may come while another
    one is on its way out (the archive was cut short), and would end just what puts away."""

    def end(number: int, frame: object) -> NoReturn:
        taker.put_away()
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    taker.take(source)


def copy(job: dict[str, Any]) -> dict[str, object]:
    if "stopped" in job:
        enter.stopped(enter.Stopped.of(job["stopped"]))
    else:
        try:
            enter.running(job["init"], job["uid"])
        except (ProcessLookupError, FileNotFoundError) as error:
            raise HvdError("RUNNER_GONE", problem="the container has ended") from error
    sys.path.clear()  # what is there now is the container's: none of it is ever loaded
    if "in" in job:
        taker = Taker(*job["in"])
        take(taker, sys.stdin.buffer)
        return {"entries": taker.entries, "bytes": taker.bytes}
    giver = Giver(*job["out"])
    sys.stdout.buffer.write(json.dumps(giver.info()).encode() + b"\n")
    for piece in giver.archive():
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return {"entries": 0, "bytes": 0}


def explained(error: OSError, path: str) -> HvdError:
    where = error.filename if isinstance(error.filename, str) else path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HvdError("DISK_FULL", directory=where, what="a copy into the guest")
    if error.errno == errno.ENOENT:
        return HvdError("COPY_PATH_MISSING", path=where)
    problem, remedy = _PROBLEMS.get(
        error.errno or 0, (f"cannot be used: {error.strerror or error}", "`hvctl exec GUEST -- ls -l` shows more")
    )
    return HvdError("COPY_REFUSED", path=where, problem=problem, remedy=remedy)


def main(job: dict[str, Any]) -> int:
    try:
        answer = copy(job)
    except BrokenPipeError:
        return 1  # nobody wants it any more
    except HvdError as error:
        answer = {"error": error.reason, "metadata": error.metadata}
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        answer = {"error": "COPY_ARCHIVE", "metadata": {"problem": str(error)[:300]}}
    except OSError as error:
        known = explained(error, job["in" if "in" in job else "out"][0])
        answer = {"error": known.reason, "metadata": known.metadata}
    print(json.dumps(answer), file=sys.stderr)
    return 1 if "error" in answer else 0


# tarfile loads them when it meets a compressed archive, which would be too late.
_LOADED = (bz2, lzma, zlib)

if __name__ == "__main__":
    # These, too.
    "".encode("utf-8", "surrogateescape").decode("ascii", "replace")
    "".encode("iso8859-1")
    sys.exit(main(json.loads(sys.argv[1])))
