"""Where each library asks for a connection."""
