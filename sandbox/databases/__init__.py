"""Where databases come from: servers, schemas, leases."""
