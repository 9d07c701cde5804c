"""mem read, write, dump, map, translate; regs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any

import click

from hvctl.output import Column, document, is_document, print_document, print_items, print_table
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, say, verb
from hvctl.values import ADDRESS, SIZE, size_text

if TYPE_CHECKING:
    from hvapi.v1 import inspect_pb2

class ProcessAddress(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """ADDRESS, or PID:ADDRESS: (pid or 0, address)."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        pid, colon, address = str(value).rpartition(":")
        if colon and not (pid.isascii() and pid.isdigit()):
            self.fail(f"'{value}' is no address; write 0x... or PID:0x...", param, ctx)
        return int(pid or 0), ADDRESS.convert(address, param, ctx)


FORMATS = ("table", "json", "jsonl", "yaml")
virtual_option = click.option(
    "--virtual", is_flag=True, help="The address is guest-virtual (by the present page tables), not guest-physical."
)


pid_option = click.option(
    "--pid", type=click.IntRange(min=1), metavar="PID",
    help="Container: the process whose memory it is, as the host numbers it; default is its first.",
)  # fmt: skip


@verb(formats=(*FORMATS, "text"))
@click.argument("guest")
@click.argument("address", type=ADDRESS)
@click.argument("length", type=SIZE, default=256)
@virtual_option
@pid_option
def read(settings: Settings, guest: str, address: int, length: int, virtual: bool, pid: int | None) -> None:
    """Shows LENGTH bytes (default 256) at ADDRESS as a hex dump."""
    from hvapi.v1 import inspect_pb2

    request = inspect_pb2.ReadMemoryRequest(
        name=guest_name(guest), address=address, length=length, virtual=virtual, pid=pid or 0
    )
    chunks = settings.client.read_memory(request, timeout=settings.timeout)
    if is_document(settings.output):
        data = b"".join(chunk.data for chunk in chunks)
        print_document(settings.output, document(inspect_pb2.ReadMemoryResponse(address=address, data=data)))
        return
    for line in hex_dump(((chunk.address, chunk.data) for chunk in chunks), address):
        click.echo(line)


def hex_dump(chunks: Iterator[tuple[int, bytes]], address: int) -> Iterator[str]:
    """Sixteen bytes a line, whatever the chunks' sizes; a run of equal lines is one *, as hexdump -C has it."""
    pending = b""
    previous = None
    starred = False

    def line(at: int, data: bytes) -> str:
        halves = (" ".join(f"{byte:02x}" for byte in data[half : half + 8]) for half in (0, 8))
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
        return f"{at:016x}  {'  '.join(halves):<48}  |{text}|"

    for _, data in chunks:
        pending += data
        while len(pending) >= 16:
            row, pending = pending[:16], pending[16:]
            if row != previous:
                yield line(address, row)
                starred = False
            elif not starred:
                yield "*"
                starred = True
            previous = row
            address += 16
    if pending:
        yield line(address, pending)
    elif starred:
        yield f"{address:016x}"


@verb(formats=FORMATS)
@click.argument("guest")
@click.argument("address", type=ADDRESS)
@click.argument("data", required=False)
@click.option("--text", is_flag=True, help="DATA is text, not hex digits.")
@click.option("--file", "file", type=click.File("rb"), metavar="F", help="Write this file's content (- = stdin).")
@virtual_option
def write(
    settings: Settings, guest: str, address: int, data: str | None, text: bool, file: IO[bytes] | None, virtual: bool
) -> None:
    """Writes DATA (hex digits: 48656c6c6f) at ADDRESS."""
    if (data is None) == (file is None):
        raise click.UsageError("give DATA or --file, one of them")
    if file is not None:
        content = file.read()
    elif text:
        content = (data or "").encode()
    else:
        try:
            content = bytes.fromhex(data or "")
        except ValueError:
            raise click.UsageError(f"'{data}' is not hex digits, two per byte; --text takes it as text") from None
    from hvapi.v1 import inspect_pb2

    written = 0
    # Well below the largest message that gRPC takes by default.
    for offset in range(0, len(content), 1 << 20):
        part = content[offset : offset + (1 << 20)]
        request = inspect_pb2.WriteMemoryRequest(
            name=guest_name(guest), address=address + offset, data=part, virtual=virtual
        )
        written += settings.client.write_memory(request).written_bytes
    if is_document(settings.output):
        print_document(settings.output, document(inspect_pb2.WriteMemoryResponse(written_bytes=written)))
    else:
        click.echo(f"{written} bytes written at {address:#x}")


@verb(formats=("text",))
@click.argument("guest")
@click.argument("address", type=ADDRESS, required=False)
@click.argument("length", type=SIZE, required=False)
@click.option("--output-file", "-O", "path", type=click.Path(dir_okay=False, allow_dash=True), required=True,
              metavar="F", help="Where to; - = stdout.")  # fmt: skip
@virtual_option
@pid_option
def dump(
    settings: Settings, guest: str, address: int | None, length: int | None, path: str, virtual: bool, pid: int | None
) -> None:
    """Saves LENGTH bytes at ADDRESS, or all RAM, to a file.

    All RAM: a byte's place in the file is its guest-physical address; holes are holes in the file.
    """
    if (address is None) != (length is None):
        raise click.UsageError("give ADDRESS and LENGTH, or neither")
    name = guest_name(guest)
    from hvapi.v1 import inspect_pb2

    if address is not None and length is not None:
        ranges = [(address, length)]
        origin = address
    else:
        if virtual or path == "-":
            raise click.UsageError(
                "all RAM goes to a file, by guest-physical address: give ADDRESS and LENGTH otherwise"
            )
        regions = settings.client.get_memory_map(name=name).regions
        if any(region.pid for region in regions):
            raise click.UsageError("each process of a container has memory of its own: give ADDRESS and LENGTH")
        ranges = [(region.start, region.length) for region in regions if region.kind == inspect_pb2.MemoryRegion.RAM]
        origin = 0
    written = 0
    try:
        with nullcontext(sys.stdout.buffer) if path == "-" else open(path, "wb") as file:
            for start, size in ranges:
                if path != "-":
                    file.seek(start - origin)
                request = inspect_pb2.ReadMemoryRequest(
                    name=name, address=start, length=size, virtual=virtual, pid=pid or 0
                )
                for chunk in settings.client.read_memory(request, timeout=settings.timeout):
                    file.write(chunk.data)
                    written += len(chunk.data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HvctlError.local("FILE_UNWRITABLE", path=path, problem=error.strerror or error) from error
    say(f"{size_text(written)} ({written} bytes) saved to {path}")


def _region_kind(region: inspect_pb2.MemoryRegion) -> str:
    return region.Kind.Name(region.kind)


REGION_COLUMNS: list[Column[inspect_pb2.MemoryRegion]] = [
    Column("START", lambda r: f"{r.start:#014x}"),
    Column("END", lambda r: f"{r.start + r.length - 1:#014x}"),
    Column("SIZE", lambda r: size_text(r.length), right=True),
    Column("KIND", _region_kind),
    Column("OWNER", lambda r: r.owner),
    Column("FILE OFFSET", lambda r: f"{r.file_offset:#x}" if _region_kind(r) in ("RAM", "ROM") else "-", wide=True),
]


MAPPING_COLUMNS: list[Column[inspect_pb2.MemoryRegion]] = [
    Column("PID", lambda r: str(r.pid), right=True),
    Column("START", lambda r: f"{r.start:#014x}"),
    Column("END", lambda r: f"{r.start + r.length - 1:#014x}"),
    Column("SIZE", lambda r: size_text(r.length), right=True),
    Column("RESIDENT", lambda r: size_text(r.resident_bytes), right=True),
    Column("RIGHTS", lambda r: r.permissions),
    Column("OWNER", lambda r: r.owner),
    Column("FILE OFFSET", lambda r: f"{r.file_offset:#x}", wide=True),
]


@verb()
@click.argument("guest")
@click.option("--pid", type=click.IntRange(min=1), metavar="PID", help="Container: only this process, as the host numbers it.")
def map_(settings: Settings, guest: str, pid: int | None) -> None:
    """Lists the regions of the guest-physical address space; of a container, its processes' mappings."""
    response = settings.client.get_memory_map(name=guest_name(guest), pid=pid or 0)
    columns = MAPPING_COLUMNS if any(region.pid for region in response.regions) else REGION_COLUMNS
    print_items(settings, response, response.regions, columns, lambda region: region.owner)
    if response.charged_bytes and settings.output in ("table", "wide"):
        limit = size_text(response.limit_bytes) if response.limit_bytes else "none"
        say(f"charged {size_text(response.charged_bytes)}, limit {limit}")


ENTRY_COLUMNS: list[Column[inspect_pb2.PageTableEntry]] = [
    Column("LEVEL", lambda e: e.level),
    Column("AT", lambda e: f"{e.address:#x}", right=True),
    Column("ENTRY", lambda e: f"{e.value:#018x}"),
]


@verb(formats=FORMATS)
@click.argument("guest")
@click.argument("address", type=ProcessAddress(), metavar="[PID:]ADDRESS")
def translate(settings: Settings, guest: str, address: tuple[int, int]) -> None:
    """Follows a guest-virtual address through the page tables to guest-physical memory.

    Of a container: an address of process PID (as the host numbers it; default is its first) to the host's memory.
    """
    found = settings.client.translate_address(name=guest_name(guest), pid=address[0], address=address[1])
    if is_document(settings.output):
        print_document(settings.output, document(found))
        return
    if found.HasField("physical_address"):
        rights = [
            "writable" if found.writable else "read-only",
            "user" if found.user else "supervisor",
            "executable" if found.executable else "no-execute",
        ]
        page = f", page of {size_text(found.page_bytes)}" if found.page_bytes else ""
        click.echo(f"{found.virtual_address:#x} -> {found.physical_address:#x} ({', '.join(rights)}{page})")
    else:
        click.echo(f"{found.virtual_address:#x} is not mapped: {found.fault}")
    click.echo(f"paging: {found.paging_mode}")
    if found.HasField("host_offset"):
        click.echo(f"offset in the memory file: {found.host_offset:#x}")
    if found.entries:
        print_table(settings, found.entries, ENTRY_COLUMNS)
    for shadow in found.shadows:
        access = "".join(letter if has else "-" for letter, has in (("r", shadow.readable), ("w", shadow.writable), ("x", shadow.executable)))
        where = f"{access}, offset {shadow.host_offset:#x} in the memory file" if shadow.mapped else "not mapped now"
        click.echo(f"shadow, {shadow.view}: {shadow.host_address:#x} in the process that runs it: {where}")


REGISTER_COLUMNS: list[Column[inspect_pb2.Register]] = [
    Column("REGISTER", lambda r: r.name),
    Column("VALUE", lambda r: f"{r.value:#x}", right=True),
    Column("BASE", lambda r: f"{r.base:#x}" if r.HasField("base") else "", right=True),
    Column("LIMIT", lambda r: f"{r.limit:#x}" if r.HasField("limit") else "", right=True),
]


@verb(formats=FORMATS)
@click.argument("guest")
@click.option("--vcpu", type=click.IntRange(min=0), default=0, metavar="N", help="Which virtual CPU; default 0.")
def regs(settings: Settings, guest: str, vcpu: int) -> None:
    """Shows the registers of a virtual CPU."""
    registers = settings.client.get_registers(name=guest_name(guest), vcpu=vcpu)
    if is_document(settings.output):
        print_document(settings.output, document(registers))
        return
    click.echo(f"{registers.mode} mode, privilege level {registers.privilege_level}")
    print_table(settings, registers.registers, REGISTER_COLUMNS)
