"""The language: one id space for text and images, documents, the CM3 objective, packing. NumPy."""
