"""Storage formats: folders, archives, databases, tables and shards, each read in place."""
