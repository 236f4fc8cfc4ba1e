"""Fashion-MNIST whole, 100 labelled images a class, mined from EMNIST: `quickstart` at full size.

The pool holds no Fashion images, so mining can only find what looks nearest: a hard case on purpose.

    python -m pujax.launch --config configs/fashion_mnist.py

Data: TFDS `fashion_mnist` and `emnist/balanced`, prepared once where there is a network (the error says how).
Hardware: a few CPU cores. Expected result: not measured yet.
"""

from pujax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FrozenScorerConfig,
    ScorerConfig,
    SourceConfig,
    TeacherConfig,
)


def get_config() -> Config:
    return Config(
        data=DataConfig(
            num_classes=10,
            image_size=32,
            channels=1,
            mean=(0.286,),
            std=(0.353,),
            labelled=SourceConfig(kind="tfds", name="fashion_mnist", split="train", per_class=100),
            pool=SourceConfig(kind="tfds", name="emnist/balanced", split="train"),
            test=SourceConfig(kind="tfds", name="fashion_mnist", split="test"),
            full=SourceConfig(kind="tfds", name="fashion_mnist", split="train"),
        ),
        teacher=TeacherConfig(model="lenet5", num_steps=10_000, learning_rate=0.05, flip=True),
        scorer=ScorerConfig(
            frozen=FrozenScorerConfig(num_steps=1000, batch_size=320, learning_rate=0.05, weight_decay=0.1)
        ),
        distill=DistillConfig(model="lenet5_half", num_steps=5000, learning_rate=0.1, flip=True, crop_padding=2),
        baselines=("labelled_only", "random", "teacher_confidence", "full_data"),
    )
