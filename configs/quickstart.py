"""Fashion-MNIST with ten labelled images a class, mined out of a pool of digits and letters.

The situation that pujax is made for, on data inside the package: a LeNet-5 teacher given as weights only, 100 labelled
images, and a pool of 30,000 of which 5 % are unlabelled Fashion images (the program is not told), the rest MNIST
digits and rendered letters. The student is LeNet-5-half.

    python -m pujax.launch --config configs/quickstart.py

Hardware: two CPU cores, no accelerator. Expected time and accuracy: see docs/results.md.
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
            labelled=SourceConfig(kind="embedded", name="labelled"),
            pool=SourceConfig(kind="embedded", name="pool"),
            test=SourceConfig(kind="embedded", name="test"),
        ),
        teacher=TeacherConfig(model="lenet5", weights="embedded:teacher_lenet5.safetensors"),
        scorer=ScorerConfig(
            frozen=FrozenScorerConfig(num_steps=1000, batch_size=320, learning_rate=0.05, weight_decay=0.1)
        ),
        distill=DistillConfig(
            model="lenet5_half",
            num_steps=1200,
            batch_size=128,
            learning_rate=0.0075,
            warmup_steps=100,
            temperature=2.0,
            flip=True,
        ),
        baselines=("labelled_only", "random", "teacher_confidence"),
    )
