"""What we claim, measured: one file a claim, ours and the peer's side by side."""
