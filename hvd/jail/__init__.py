"""What a runner cannot do, whoever controls it: a user of its own, an empty root and network, no privileges but what its cell needs, a filter of
system calls. docs/security.md has the layers; each holds without the others."""
