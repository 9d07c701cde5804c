"""Tracing of containers: their system calls, by eBPF."""
