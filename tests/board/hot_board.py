"""What the tests of the hot devices share."""

from __future__ import annotations

from hvd.board.hot import HotBoard, PortResult


def read(board: HotBoard, port: int, size: int = 1) -> int:
    result, value = board.port_in(port, size)
    assert result is PortResult.DONE
    return value


def write(board: HotBoard, port: int, *values: int, size: int = 1) -> None:
    for value in values:
        assert board.port_out(port, size, value) is PortResult.DONE


def set_up_pics(board: HotBoard, master_mask: int = 0, slave_mask: int = 0) -> None:
    """Vectors 20 and 28, fully nested, normal EOI: what PC kernels do."""
    for base, icw2, icw3, mask in ((0x20, 0x20, 4, master_mask), (0xA0, 0x28, 2, slave_mask)):
        write(board, base, 0x11)
        write(board, base + 1, icw2, icw3, 1, mask)
