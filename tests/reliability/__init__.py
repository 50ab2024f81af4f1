"""`python -m tests.reliability`: tries what the project promises about trust, prints one table."""
