"""MNIST, ten labelled images a class, mined from EMNIST: letters and digits of other hands.

The paper's MNIST setting has no released code; this is our reading: LeNet-5 teacher trained on all of MNIST,
LeNet-5-half student, pool EMNIST (method and networks as in the authors' sibling project DAFL).

    python -m pujax.launch --config configs/mnist.py

Data: TFDS `mnist` and `emnist/byclass`, prepared once where there is a network (the error says how).
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
            mean=(0.1307,),
            std=(0.3081,),
            labelled=SourceConfig(kind="tfds", name="mnist", split="train", per_class=10),
            pool=SourceConfig(kind="tfds", name="emnist/byclass", split="train"),
            test=SourceConfig(kind="tfds", name="mnist", split="test"),
            full=SourceConfig(kind="tfds", name="mnist", split="train"),
        ),
        teacher=TeacherConfig(model="lenet5", num_steps=5000, learning_rate=0.05, crop_padding=2),
        scorer=ScorerConfig(
            frozen=FrozenScorerConfig(num_steps=1000, batch_size=320, learning_rate=0.05, weight_decay=0.1)
        ),
        distill=DistillConfig(model="lenet5_half", num_steps=5000, learning_rate=0.1, crop_padding=2),
        baselines=("labelled_only", "random", "teacher_confidence", "full_data"),
    )
