"""Methods of the challenges, one file per method, named as its team named it."""
