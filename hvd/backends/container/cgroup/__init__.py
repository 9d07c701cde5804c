"""Control groups (cgroups(7)) of containers: where they are, what they may use, what they used."""
