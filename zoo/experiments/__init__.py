"""Nine experiments with a CLIP model, each with metrics, plots and a section of one report. Imports no Keras.

Each experiment is a module with one function, `run(context) -> Outcome`.
"""

EXPERIMENTS = (
    "exploration",
    "classification",
    "cifar10",
    "mnist",
    "retrieval",
    "embedding_space",
    "performance",
    "temperature",
    "prompts",
)
