"""What tests share: models, networks, streams, and how a model is held against its recording."""
