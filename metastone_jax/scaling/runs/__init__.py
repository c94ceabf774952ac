"""What the points of a sweep do: they train, draw, fit and judge."""
