"""Running a model: weights from the file, the KV cache, and the engine that owns them."""
