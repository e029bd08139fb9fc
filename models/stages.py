"""The walk through the stages of a net whose blocks return their sum BEFORE its ReLU."""
import torch.nn.functional as F


def run_stages(stages, x):
    """Apply the blocks of every stage, a ReLU after each.

    Returns (the last output, features, pre-activations): lists of x and then one map a stage, after and before the
    stage's last ReLU.
    """
    feats, preacts = [x], [x]
    for stage in stages:
        for block in stage:
            before = block(x)
            x = F.relu(before)
        feats.append(x)
        preacts.append(before)
    return x, feats, preacts
