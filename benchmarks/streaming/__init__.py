"""Reading shards, ours against four other libraries: python -m benchmarks.streaming."""
