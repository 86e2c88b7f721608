"""Code that must not be trusted, run in a box: see docs/verifiers.md, "The sandbox"."""
