"""The way in: two TLS listeners, the checks every call passes, and thin servicers behind them.

A servicer converts, calls, converts back, and raises `ApiError` for what it refuses. It knows neither sockets nor
certificates: who calls is `caller()`. Everything about a method that is not code (who may call it, what it may answer,
which rules its messages keep) is read from the contracts' image, never written a second time.
"""
