"""The cell, the C core under trap, rewriting and paravirt (cell.h), and what Python has to do with it."""
