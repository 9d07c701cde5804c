"""Control groups of containers, beyond hvd.cgroup: what they may use, what they used."""
