"""The process that owns one virtual machine. It imports neither grpc nor anything heavy: its start is a figure we
publish. protocol.py and client.py are the daemon's side of it."""
