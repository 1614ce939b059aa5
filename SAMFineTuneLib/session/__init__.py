"""The interactive session: what callers can ask (intents), what it reports (events), undo, and its file."""
