"""One file per method, named as its team named it."""
