"""ImageNet and imagenette: {data_dir}/{dataset}/{train,val}/CLASS/*, or train.lmdb and val.lmdb there."""
from pathlib import Path

from .folder import scan


def open_sources(opt):
    """({'train', 'test', maybe 'val'} -> dataset.source.Source, classes) of opt.dataset. Raises UserError."""
    root = Path(opt.data_dir) / opt.dataset
    if opt.use_lmdb:
        from .lmdb_source import open_lmdb_sources
        return open_lmdb_sources(root)
    return scan(root, needs_train=not getattr(opt, 'unlabelled', None))
