"""The same work under every kind of virtualisation, in turns: `hvctl compare`."""
