"""The PCI bus of the board (PCI Local Bus Specification 3.0): configuration mechanism 1, functions, their BARs and interrupts.

registers.py     what of all this C answers by itself (hvd/board/native/pci.h), shared with it
config_space.py  256 bytes with write masks and the list of capabilities
function.py      a function: header, command and status, BARs, INTx
msix.py          message-signalled interrupts
bridges.py       what a PC of this kind has at 00.0 and 01.0
bus.py           the board's device: ports 0xCF8 and 0xCFC, the window that the BARs lie in
slots.py         which functions a machine has, and where
"""
