"""The teaching kernel's disk: boot sector, kernel, table of files at sector 1024, files.

    python3 mkdisk.py DISK BOOTSECTOR KERNEL FILE...
"""

import struct
import sys
from pathlib import Path

SECTOR, TABLE, MOST_FILES = 512, 1024, 31
SIZE = 2 << 20

image, boot, kernel, *names = map(Path, sys.argv[1:])
code = kernel.read_bytes()
sectors = -(-len(code) // SECTOR)
disk = bytearray(SIZE)
disk[:SECTOR] = boot.read_bytes()
struct.pack_into("<H", disk, 508, sectors)
if sectors >= TABLE or len(names) > MOST_FILES:
    sys.exit("the kernel or the table does not fit")
disk[SECTOR : SECTOR + len(code)] = code
struct.pack_into("<8sI", disk, TABLE * SECTOR, b"TEACHFS1", len(names))
place = TABLE + 2
for number, name in enumerate(names):
    content = name.read_bytes()
    struct.pack_into("<20sII", disk, TABLE * SECTOR + 32 * (number + 1), name.name.encode(), place, len(content))
    disk[place * SECTOR : place * SECTOR + len(content)] = content
    place += -(-len(content) // SECTOR)
image.write_bytes(disk)
