"""Trap and emulate: the guest's kernel runs natively, deprivileged; what is privileged traps and is emulated (docs/trap.md)."""
