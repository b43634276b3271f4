"""The report: a ranking and its pictures as one page of HTML."""
