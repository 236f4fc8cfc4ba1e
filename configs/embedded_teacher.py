"""How the teacher inside the package was trained: LeNet-5 on the 60,000 training images of Fashion-MNIST.

    python tools/build_embedded_data.py --raw_out raw
    python -m pujax.launch --config configs/embedded_teacher.py --stages=teacher
    cp runs/embedded_teacher/teacher/teacher.safetensors pujax/data/embedded/teacher_lenet5.safetensors

Hardware: two CPU cores, about five minutes. Result: the accuracy of the quickstart's teacher in docs/results.md.
"""

from configs import quickstart
from pujax.config import Config, SourceConfig, TeacherConfig


def get_config() -> Config:
    config = quickstart.get_config()
    config.data.full = SourceConfig(kind="array", path="raw/fashion_train.npz")
    config.teacher = TeacherConfig(
        model="lenet5",
        num_steps=14_000,
        batch_size=128,
        learning_rate=0.05,
        flip=True,
        crop_padding=1,
        steps_per_call=10,
    )
    return config
