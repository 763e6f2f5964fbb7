"""Operators that will not get a relevance rule, and why: what the error says in place of "no rule".

A Softmax or an attention mixes cells by weights that are computed from the cells: there is no agreed share for that.
A subgraph runs other nodes, or the same ones many times; its activations cannot be read from outside.
"""

from __future__ import annotations

from fgcam_onnx.registry import no_rule

SUBGRAPH = "it runs a subgraph, whose activations cannot be read from outside: export the model without control flow"
ATTENTION = "attention: cells are mixed by weights computed from the cells, and there is no relevance rule for that"
RECURRENT = "a recurrent layer: fgcam_onnx explains convolutional networks"
CHOICE = "it answers with positions, not with values: nothing can be handed back"

no_rule("relevance", "inside the path: relevance starts at the logits, before any Softmax", "Softmax", "LogSoftmax")
no_rule("relevance", "inside the path: relevance starts at the logits, before any Hardmax", "Hardmax")
for kind in ("relevance", "gradient", "rescale"):
    no_rule(kind, SUBGRAPH, "If", "Loop", "Scan", "SequenceMap")
    no_rule(kind, ATTENTION, "Attention", "com.microsoft::Attention", "com.microsoft::MultiHeadAttention", "Einsum")
    no_rule(kind, RECURRENT, "RNN", "LSTM", "GRU")
    no_rule(kind, CHOICE, "ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero")
