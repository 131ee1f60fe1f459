"""What tests share: models, networks, streams, and how a model is held against its captured graph."""
