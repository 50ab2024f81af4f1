"""One thin file for each command; nothing else in the project imports them."""
