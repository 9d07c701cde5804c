"""Stand-ins that keep a contract by the simplest means."""
