from pathlib import Path

from hvd.board.block.overlay import Overlay, create_overlay


def test_smoke(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"B" * 10000)
    create_overlay(tmp_path / "o", 20480, base)
    o = Overlay(tmp_path / "o", base, 20480)
    o.write(5000, [memoryview(b"xyz"), memoryview(b"uvw")])
    out = bytearray(20480)
    o.read(0, [memoryview(out)[:5001], memoryview(out)[5001:]])
    assert out == b"B" * 5000 + b"xyzuvw" + b"B" * (10000 - 5006) + bytes(10480)
    o.close()
    o = Overlay(tmp_path / "o", base, 20480)
    o.discard(4096, 4096)
    o.read(0, [memoryview(out)])
    assert out == b"B" * 4096 + bytes(4096) + b"B" * (10000 - 8192) + bytes(10480)
    o.close()
