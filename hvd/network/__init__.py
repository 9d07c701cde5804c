"""Networks of the host that guests are plugged into, and what a guest's network cards need of the host."""
