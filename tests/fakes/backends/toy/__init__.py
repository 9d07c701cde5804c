"""A backend of the smallest kind: an interpreter of six instructions. docs/add-a-backend.md walks through it."""
