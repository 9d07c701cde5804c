"""Control groups (cgroups(7)) of guests, whatever kind: where they are, what is in them, and their end."""
