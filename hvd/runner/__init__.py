"""The process that owns one virtual machine. Imports neither grpc nor anything heavy: its start is a figure we publish."""
