"""The worker and the department server, and the client that keeps a session on one of them.

Start with `protocol` (the messages), `client` and `host` (the two ends of a session). The client's side (`client`,
`journal`, `link`, `remote_server`, `worker`) needs the standard library and NumPy alone; the server's side (`server`,
`server_app`, `host`, `open_models`) opens models when a session asks for one.
"""
