"""The interactive session: what can be asked (intents), what it tells (events), undo, and its file."""
