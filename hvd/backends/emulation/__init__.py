"""Emulation: an operating system as a process. Every instruction goes through a translator (Unicorn); the host's CPU does not show."""
