"""The connection to a relay: :mod:`.link` is the WebSocket, :mod:`.frames` the messages on it."""
