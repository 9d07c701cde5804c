"""Container-based OS virtualisation: groups of processes of the host's kernel, by an OCI runtime under conmon."""
