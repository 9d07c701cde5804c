"""Binary rewriting: the guest's kernel is translated at run time, its programs run natively (docs/rewriting.md)."""
