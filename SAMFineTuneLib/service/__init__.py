"""The worker: one HTTP service, local or remote, and the client that keeps a session on it.

The client (`client`, `connection`, `local_worker`) needs the standard library and NumPy alone; the server (`app`,
`server`, `hosted`) opens models when a session asks for one.
"""
