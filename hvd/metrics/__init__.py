"""Figures about guests and the daemon: read from shared pages and /proc, never asked of a guest."""
