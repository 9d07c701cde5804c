"""The PC that every VM guest sees, whatever executes its instructions: memory, ports, devices, loaders, clock."""
