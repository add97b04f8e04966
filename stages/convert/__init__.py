"""Raw data sets in the layouts their authors published, turned into shards of samples."""
