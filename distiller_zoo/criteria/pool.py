"""Feature maps of a pair brought to one size."""
import torch.nn.functional as F


def match_size(f_s, f_t):
    """Two maps (N, C, H, W): the larger is average-pooled to the other's size."""
    size_s, size_t = f_s.shape[-1], f_t.shape[-1]
    if size_s > size_t:
        f_s = F.adaptive_avg_pool2d(f_s, size_t)
    elif size_t > size_s:
        f_t = F.adaptive_avg_pool2d(f_t, size_s)
    return f_s, f_t
