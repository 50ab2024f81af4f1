"""What the embedded Korean-English grammar is made of: words, phrases, clauses."""
