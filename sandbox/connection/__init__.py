"""One real connection, many virtual ones."""
