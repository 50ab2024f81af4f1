"""Shapes of models that papers trained; the paper's base is the default, `TransformerConfig()`."""

from transformer.models import TransformerConfig

#: Wu et al. 2021, for corpora of the size of Multi30k.
TINY = TransformerConfig(d_model=128, d_ff=256, num_heads=4, num_layers=4, dropout=0.3)
#: Vaswani et al. 2017, Table 3.
BIG = TransformerConfig(d_model=1024, d_ff=4096, num_heads=16, dropout=0.3)
