"""Serving: bundles behind an HTTP interface, and the page that uses it."""
