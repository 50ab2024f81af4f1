"""Speed of this package beside others, measured in one run: `make bench`."""
