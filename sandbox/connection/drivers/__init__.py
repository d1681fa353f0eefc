"""Drivers that speak PEP 249 themselves, one module each, imported when first used."""
