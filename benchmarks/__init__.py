"""Every figure in README and docs comes from a script here; each prints ratios against a reference of the same run."""
