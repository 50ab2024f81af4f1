"""From a parallel corpus to batches: corpus -> tokenizer -> token cache -> batches.

Import from the modules (``transformer.data.tokenizer`` and so on): this package itself imports
nothing, so that inference never pays for what only training needs.
"""
