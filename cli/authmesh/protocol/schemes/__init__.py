"""The versions of the Authorization header. Each is a scheme, which defines what a signature covers (design.md, decision 11)."""
