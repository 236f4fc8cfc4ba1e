"""A teacher, labelled images and a pool of your own; see docs/your_own.md.

    python -m pujax.launch --config configs/your_own.py --config.teacher.weights=teacher.safetensors \
        --config.data.labelled=/data/labelled --config.data.pool='/data/pool/{000..099}.tar' --dry_run

`/data/labelled` has one folder a class. Weights that `pujax import` or a job of pujax wrote say what network they are;
for a PyTorch state dict of a network that pujax has, name it: --config.teacher.model=resnet18.

Hardware: any. At 224 pixels a GPU is wanted; the dry run says how long it will take.
"""

from pujax import own_data_config as get_config

__all__ = ["get_config"]
