"""Virtio devices (Virtual I/O Device, OASIS, version 1.2).

device.py      VirtioDevice, the base class of all: what a device is beside its queues
queue.py       split virtqueues (2.7)
pci.py         the transport: virtio over PCI (4.1)
devices.py     which devices a machine has
block.py, rng.py, console.py, ...
"""
