"""Nine experiments with an image–text pair, each leaving numbers and pictures. Importing this package imports no Keras.

They follow the list of a public report on CLIP; each is a module with one function, `run(setting) -> Outcome`.
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
