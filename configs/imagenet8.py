"""The paper's ImageNet protocol: 8 % of ImageNet labelled (100 images a class), ResNet-18 student, a web-scale pool.

The paper's pool, Flickr1M, is not distributed with TFDS: name one of your own, and a teacher. Without `teacher.weights`
a ResNet-34 is trained first, on all of ImageNet.

    python -m pujax.launch --config configs/imagenet8.py --workdir runs/imagenet8 \
        --config.teacher.weights=resnet34.pth --config.data.pool='gs://bucket/pool/{00000..00999}.tar' --dry_run

The labelled images are TFDS's `imagenet2012`, prepared once; a folder with one folder a class does too, of which the
first 100 a class are taken (`--config.data.labelled=/data/imagenet/train`). A pool of photographs is made otherwise
than ImageNet, so the share of useful images cannot be estimated, and the budget is given: about as many as ImageNet
has, by the mean rank of score and confidence. What to expect of it: on CIFAR-10, the only photographs that were
measured, mined images beat random ones by a point after a short training and by nothing after a long one.

Hardware: one host with 8 accelerators, or a TPU slice; a pool of more than some ten million images is scored by workers
of their own, and lies better in Parquet than in tar: docs/scale.md. Expected accuracy: not measured yet.

Disk: labelled and chosen images are copied once, decoded, at 224x224: computed, 150,528 bytes an image, 166 GB for 1.1
million; a teacher that is trained here, 193 GB for the 1.28 million of ImageNet. The pool is not copied.
Time on one H200, computed by `python -m benchmarks.scale_model` from rates that were reported (12,044 images/s for this
distillation; not in benchmarks/results) and measured (399 images/s decoded a core): the student, 200,000 steps of 512,
2.4 h; scoring a million images of a pool by 16 cores, 2.6 min, which decoding takes, by the GPU alone 0.6 min. Cost is
these hours times your price. `--dry_run` measures both rates on your machine and your images.
"""

from pujax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FrozenScorerConfig,
    RunConfig,
    ScoreConfig,
    ScorerConfig,
    SelectConfig,
    SourceConfig,
    TeacherConfig,
)


def get_config() -> Config:
    return Config(
        data=DataConfig(
            num_classes=1000,
            image_size=224,
            channels=3,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop=0.875,  # as torchvision's networks want it
            labelled=SourceConfig(kind="tfds", name="imagenet2012", split="train", per_class=100),
            pool=SourceConfig(kind="tar", path="gs://YOUR-BUCKET/pool/{00000..00999}.tar"),
            test=SourceConfig(kind="tfds", name="imagenet2012", split="validation"),
            full=SourceConfig(kind="tfds", name="imagenet2012", split="train"),
        ),
        teacher=TeacherConfig(
            model="resnet34", num_steps=450_000, batch_size=256, learning_rate=0.1, weight_decay=1e-4,
            crop_padding=16, flip=True,
        ),
        # As for CIFAR-10, but one view an image: turned and mirrored ones take four times as long.
        scorer=ScorerConfig(
            pool_sample=200_000,
            frozen=FrozenScorerConfig(
                num_steps=5000, batch_size=1024, positives_per_batch=256, learning_rate=0.05, weight_decay=0.02,
                hidden=64, distance=1.5, energy=1.0, styles="off", reliable_negatives=0.5,
            ),
        ),
        score=ScoreConfig(shard_size=100_000),  # some seconds to minutes of work; a lost worker loses one
        select=SelectConfig(rule="mean_rank", budget=1_000_000),
        distill=DistillConfig(
            model="resnet18", num_steps=200_000, batch_size=512, learning_rate=0.2, weight_decay=1e-4,
            crop_padding=16, flip=True, warmup_steps=2000,
        ),
        run=RunConfig(inference_batch_size=1024, checkpoint_every=5000),
    )  # fmt: skip
