"""What Coppice is measured against: small servers as people write them, each a module with an ASGI `app`."""
