"""scikit-learn's bundled handwritten digits: 1,797 real 8x8 scans, enlarged to 32x32. Nothing is downloaded."""
import torch
import torch.nn.functional as F


def load(opt):
    """((train images, labels), (test images, labels), classes): uint8 (N, 3, 32, 32) and int64 (N,).

    Four fifths train, one fifth tests, each class in proportion, by a fixed seed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    scans, labels = load_digits(return_X_y=True)
    scans = torch.tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(scans, size=32, mode='bilinear').round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.tensor(labels, dtype=torch.int64)
    train, test = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.2, random_state=0,
                                   stratify=labels.numpy())
    return (images[train], labels[train]), (images[test], labels[test]), [str(d) for d in range(10)]
