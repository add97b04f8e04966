"""A trained model answers about every image of shards, and what it says becomes shards again."""
