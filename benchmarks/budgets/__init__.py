"""One row for every line of the budgets."""
