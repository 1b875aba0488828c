"""What is drawn: a panel as data, its figure, its table."""
