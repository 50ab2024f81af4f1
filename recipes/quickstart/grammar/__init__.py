"""The grammar that made the quickstart's corpus: Korean and English sentences, not natural text.

forms of words (`morphology`, `lexicon`) -> phrases and clauses (`clauses`, `parts`, `predicates`,
`being`, `scenes`) -> verb forms (`forms`) -> `sentences`, in the order and the splits of a corpus.
"""
