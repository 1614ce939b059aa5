"""Models: what they are (`spec`), how pictures reach them (`preprocess`), recognising, loading and exporting them.

PyTorch is imported only inside the functions that need it, so that ONNX models run without it.
"""
