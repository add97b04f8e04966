"""A small tokenizer from the texts of shards, for models that are trained from nothing."""
