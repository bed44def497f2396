"""What is trained on XLA and on the CPU, to be compared: each target with something that comes before or after it."""

from tests.distributed.checks import Training, gc

TRAININGS = {
    "gradient": Training(gc()),
    "clipped_gradient": Training(gc("clipped_gradient", log_means="total"), clip=("norm", 0.05)),
    "update": Training(gc("update", log_means="total"), optimizer="adamw", accumulate=2),
}
