"""From the rows of finished runs to rankings, figures and reports; imports no Lightning."""
