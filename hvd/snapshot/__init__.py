"""Snapshots of whole machines: the file's format, and what of a machine goes into it (docs/snapshots.md).

Imported by runners too: nothing heavy, no protobuf.
"""
