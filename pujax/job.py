"""What every stage of a job is given: its options, its folder, its images, its devices, its log."""

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from pujax.artifacts import Workdir
from pujax.config import Config
from pujax.data.chosen import ChosenImages
from pujax.data.sources import ImageSource
from pujax.inference import resolve_dtype
from pujax.metrics import MetricsLog
from pujax.networks import Network, load_network
from pujax.score_table import ScoreTable, read_selection


@dataclass(frozen=True)
class Job:
    """One job; its sources are opened once, by the pipeline."""

    config: Config
    workdir: Workdir
    sources: dict[str, ImageSource]  # by part: "labelled", "pool", "test", and "full" where there is one
    given_teacher: Network | None  # as it was read; None where the teacher is trained here
    mesh: Mesh
    log: MetricsLog

    def teacher(self) -> Network:
        """Read the network that the teacher stage left."""
        return load_network(self.workdir.teacher, dtype=resolve_dtype(self.config.compute_dtype))

    def score_table(self) -> ScoreTable:
        """Return the pool's score table, which the score stage fills."""
        return ScoreTable(self.workdir.shards, len(self.sources["pool"]), self.config.score.shard_size)

    def chosen_images(self) -> ChosenImages:
        """Return the files of the chosen images, which the select stage writes where the options say so."""
        data = self.config.data
        return ChosenImages(
            self.workdir.chosen_images,
            read_selection(self.workdir.selected),
            shape=(data.image_size, data.image_size, data.channels),
            pool=self.sources["pool"].fingerprint,
            scratch=self.workdir.unit("select").scratch,
        )

    def chosen(self) -> tuple[ImageSource, np.ndarray]:
        """Return the chosen images as (source, indices): of their own files if these are written, else of the pool."""
        images = self.chosen_images()
        if images.begun():
            return images, np.arange(len(images))
        return self.sources["pool"], images.selected["index"].to_numpy()
