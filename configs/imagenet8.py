"""The paper's ImageNet protocol: 8 % of ImageNet labelled (100 images a class), ResNet-18 student, a web-scale pool.

The paper's pool (Flickr1M) is not distributed with TFDS; point `data.pool` at a folder of images of your own:

    python -m pujax.launch --config configs/imagenet8.py --config.data.pool.path=/data/pool \
        --config.teacher.weights=/data/resnet34.safetensors

Without `teacher.weights` a ResNet-34 is trained first, on all of ImageNet. Images are held at 224x224 in files
next to the results: 150 kB an image, so 1.28 million take 193 GB.
Hardware: one host with 8 accelerators, or a TPU slice. Expected result: not measured yet.
"""

from pujax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FrozenScorerConfig,
    RunConfig,
    ScoreConfig,
    ScorerConfig,
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
            labelled=SourceConfig(kind="tfds", name="imagenet2012", split="train", per_class=100),
            pool=SourceConfig(kind="folder", path="data/pool"),
            test=SourceConfig(kind="tfds", name="imagenet2012", split="validation"),
            full=SourceConfig(kind="tfds", name="imagenet2012", split="train"),
        ),
        teacher=TeacherConfig(
            model="resnet34", num_steps=450_000, batch_size=256, learning_rate=0.1, weight_decay=1e-4,
            crop_padding=16, flip=True,
        ),
        scorer=ScorerConfig(
            pool_sample=200_000, frozen=FrozenScorerConfig(num_steps=5000, batch_size=1024, learning_rate=0.05)
        ),
        score=ScoreConfig(shard_size=20_000),
        distill=DistillConfig(
            model="resnet18", num_steps=200_000, batch_size=512, learning_rate=0.2, weight_decay=1e-4,
            crop_padding=16, flip=True, warmup_steps=2000,
        ),
        run=RunConfig(inference_batch_size=1024, checkpoint_every=5000),
    )  # fmt: skip
