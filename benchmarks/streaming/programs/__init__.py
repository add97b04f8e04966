"""What runs in a process of its own: one library each, the same requests, the same work."""
