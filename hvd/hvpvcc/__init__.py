"""Kernels that nobody ported, made paravirtual at compile time: hvpvcc (docs/hvpvcc.md).

filter/ (C) stands where gcc looks for `as`: it gives each sensitive instruction room to be replaced, and a record. elf.py and sites.py read
the records of a linked kernel, verify.py proves by disassembly that none is missing, thunks.py and finish.py replace. main.py is the program.
"""
