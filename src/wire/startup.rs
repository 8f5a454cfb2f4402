//! What a client sends before anything else: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
