"""The channel shuffle that ShuffleNet V1 and V2 share."""


def channel_shuffle(x, groups: int):
    """Interleave the channels of `groups` equal groups. x: (N, C, H, W), C divisible by groups."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
