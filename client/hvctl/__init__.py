"""hvctl: the command line (hvctl.cli) and the Python SDK (hvctl.sdk) of hvd. Nothing is imported here: help must not
pay for grpc."""
