"""The challenge: rules, measured results, ranking, its sensitivity, submissions, report page."""
