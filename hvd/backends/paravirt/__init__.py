"""Paravirtualisation: the guest's kernel runs natively, deprivileged, and was changed to make hypercalls (docs/paravirtualisation.md)."""
