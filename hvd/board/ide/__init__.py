"""IDE: two channels of two drives each, programmed I/O only (ATA/ATAPI-6, T13/1410D)."""

from __future__ import annotations
