"""Guests: what they are, where they are kept, how they live; on top of the contract of hvd/backends."""
