"""What the shop does. A service commits: one call, one or more whole transactions."""
