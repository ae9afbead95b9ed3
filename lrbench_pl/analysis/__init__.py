"""Statistics, rankings, figures and reports from the results of runs; imports no Lightning."""
