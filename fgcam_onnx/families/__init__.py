"""Families: how methods of a kind are planned and run, one file each.

    cam           something is put on L, and walked down if the method is fine-grained (FG-CAM)
    relevance     relevance starts on the logits and is walked down: LRP and its contrastive kin
    derivative    one walk by derivatives or multipliers: gradient, guided backpropagation, DeepLIFT
    sampling      many inputs are tried: integrated gradients, SmoothGrad, RISE

A family is a module with two functions: ``plan(engine, ask) -> Job`` decides before anything runs, ``run(engine, job,
batch) -> Found`` answers for one batch.
"""
