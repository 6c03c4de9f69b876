"""From data sets in their official layouts to records, shards and samples."""
