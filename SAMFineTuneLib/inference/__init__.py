"""Prediction: engines, embedding cache, predictor, propagation, everything mode, automatic head."""
