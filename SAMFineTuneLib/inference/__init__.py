"""From a picture and prompts to masks: engines, embedding cache, predictor, propagation, everything mode, session."""
