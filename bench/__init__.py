"""What the project claims about its speed and size, as commands: `python -m bench` (docs/benchmarks.md)."""
