"""One file per operation: a faster body for the same numbers; lanes and devices serve them all."""
